"""Hyperparameters that live in the state, where they can be read, edited and scheduled.

The factory of an optimizer is called again inside every update, with the present values of its
numbers. So a value can change during a run without recompiling, and the state shows what was
applied last.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentTypeError, unknown_name
from flaxtrain.optim.dtypes import check_dtype, with_dtypes_of
from flaxtrain.optim.injectable import (
    has_dtype,
    is_number,
    is_static_integer,
    kept_float,
    may_be_scheduled,
    stored,
)
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.stateful_schedule import StatefulSchedule, WrappedSchedule
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    answering,
    with_extra_args,
)
from flaxtrain.typing import (
    Array,
    DTypeLike,
    OptState,
    Params,
    PyTree,
    Updates,
)

__all__ = [
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "inject_hyperparams",
    "inject_stateful_hyperparams",
]

Factory = Callable[..., TransformationLike]


class InjectHyperparamsState(NamedTuple):
    """The state that optax had before its version 0.1.9; kept for reading old checkpoints."""

    count: Any  # an Array
    hyperparams: dict[str, Any]
    inner_state: OptState


class InjectStatefulHyperparamsState(NamedTuple):
    """The hyperparameters as they were applied last.

    Attributes:
        count: number of updates, int32.
        hyperparams: the numbers by name. Those without a schedule may be replaced.
        hyperparams_states: the state of each schedule by name.
        inner_state: the state of the transformation.
    """

    count: Any  # an Array
    hyperparams: dict[str, Any]
    hyperparams_states: dict[str, Any]
    inner_state: OptState


def inject_hyperparams(
    inner_factory: Factory,
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformation]:
    """Returns a factory like `inner_factory` whose numbers live in the state.

    Each of its numbers may be a number, a schedule of the number of updates already applied, or
    a `StatefulSchedule`. A callable is a schedule if the parameter takes numbers, by its
    annotation or default; masks, labels and other functions are handed through, as are bools,
    strings and everything else, and Python ints of parameters annotated `int` alone (a size,
    an axis, a seed). Numbers are stored in float32 (float64 for parameters of that dtype), also
    for parameters of less precision; updates and slots then have the dtypes that constants
    would give. An int assigned to what was a float is stored as a float.

    Args:
        inner_factory: makes a transformation; called in `init` and in every `update`.
        static_args: one name or several: arguments that are handed through as they are.
        hyperparam_dtype: dtype of all numbers that are not integers or arrays already.

    Returns:
        A factory of transformations whose state is an `InjectStatefulHyperparamsState`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownNameError: `static_args` names no parameter of the factory; (from `update`)
            `state.hyperparams` has a name that is none of the hyperparameters.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> tx = inject_hyperparams(sgd)(learning_rate=0.5)
        >>> state = tx.init(jnp.float32(0.0))
        >>> print(tx.update(jnp.float32(1.0), state)[0])
        -0.5
        >>> state.hyperparams["learning_rate"] = 0.25
        >>> print(tx.update(jnp.float32(1.0), state)[0])
        -0.25
    """
    static = _names(static_args)
    dtype = check_dtype("hyperparam_dtype", hyperparam_dtype, where="inject_hyperparams")
    signature = _signature(inner_factory, static)
    text = _text(inner_factory, static, dtype)

    @answering
    @functools.wraps(inner_factory)
    def make(*args: Any, **kwargs: Any) -> GradientTransformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = _sorted_call(inner_factory, bound, static)
        if not call.schedules:
            call.build(call.numbers)  # so that its checks speak now
        made = _injected(call, dtype)
        given = signature.bind(*args, **kwargs).arguments
        return made if text is None else replace(made, name=text, arguments=given)

    return make


def inject_stateful_hyperparams(
    inner_factory: Factory,
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformation]:
    """The former name of `inject_hyperparams`, deprecated in optax too.

    Args:
        inner_factory: see `inject_hyperparams`.
        static_args: see `inject_hyperparams`.
        hyperparam_dtype: see `inject_hyperparams`.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> with warnings.catch_warnings(action="ignore"):
        ...     tx = inject_stateful_hyperparams(sgd)(0.5)
        >>> print(tx.init(jnp.float32(0.0)).hyperparams["learning_rate"])
        0.5
    """
    warnings.warn(
        "inject_stateful_hyperparams is deprecated; call inject_hyperparams",
        DeprecationWarning,
        stacklevel=2,
    )
    return inject_hyperparams(inner_factory, static_args, hyperparam_dtype)


@dataclass(frozen=True)
class _Call:
    """A call of a factory, its arguments sorted into what changes and what does not."""

    factory: Factory
    bound: inspect.BoundArguments
    keywords: str | None  # the name of `**kwargs`
    numbers: dict[str, Any]
    schedules: dict[str, StatefulSchedule]

    def build(self, hyperparams: dict[str, Any]) -> GradientTransformation:
        arguments = dict(self.bound.arguments)
        extra = dict(arguments.get(self.keywords, {})) if self.keywords else {}
        for name, value in hyperparams.items():
            (extra if name in extra else arguments)[name] = value
        if self.keywords:
            arguments[self.keywords] = extra
        bound = inspect.BoundArguments(self.bound.signature, arguments)
        return with_extra_args(self.factory(*bound.args, **bound.kwargs))


def _sorted_call(
    factory: Factory, bound: inspect.BoundArguments, static: frozenset[str]
) -> _Call:
    parameters = bound.signature.parameters
    keywords = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    several = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    table = {n: v for n, v in bound.arguments.items() if n not in (keywords, several)}
    table |= bound.arguments.get(keywords, {}) if keywords else {}
    numbers, schedules = {}, {}
    for name, value in table.items():
        if name in static or is_static_integer(factory, name, value):
            continue
        if is_number(value):
            numbers[name] = value
        elif callable(value) and may_be_scheduled(factory, name, value):
            schedules[name] = _stateful(value)
    return _Call(factory, bound, keywords, numbers, schedules)


def _stateful(schedule: Any) -> StatefulSchedule:
    return schedule if isinstance(schedule, StatefulSchedule) else WrappedSchedule(schedule)


def _injected(call: _Call, dtype: DTypeLike | None) -> GradientTransformation:
    # Arrays with a dtype of their own keep it, and widen what they meet as they would outside.
    strong = {n for n, value in call.numbers.items() if has_dtype(value)}

    def init(params: Params, /) -> InjectStatefulHyperparamsState:
        floats = _float_dtype(params) if dtype is None else dtype
        states = {name: schedule.init() for name, schedule in call.schedules.items()}
        values = call.numbers | {n: s(states[n]) for n, s in call.schedules.items()}
        # Copies: the state may be donated, and what was passed in is needed again.
        hyperparams = {name: jnp.array(stored(v, floats)) for name, v in values.items()}
        return InjectStatefulHyperparamsState(
            count=jnp.zeros([], jnp.int32),
            hyperparams=hyperparams,
            hyperparams_states=states,
            inner_state=_unshared(hyperparams, call.build(hyperparams).init(params)),
        )

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, InjectStatefulHyperparamsState]:
        floats = _float_dtype(updates if params is None else params) if dtype is None else dtype
        states, values = state.hyperparams_states, _known(state.hyperparams, call)
        for name, schedule in call.schedules.items():
            new = jnp.asarray(schedule(states[name], **extra_args))
            old = kept_float(values.get(name, new), new, floats)
            values[name] = new.astype(jnp.result_type(old))
        for name, given in call.numbers.items():
            values[name] = kept_float(values.get(name, given), given, floats)
        hyperparams = {name: stored(value, floats) for name, value in values.items()}

        def run(hyperparams: dict[str, Any], updates: Any, inner: Any, params: Any) -> Any:
            return call.build(hyperparams).update(updates, inner, params, **extra_args)

        operands = (updates, state.inner_state, params)
        new = run(hyperparams, *operands)
        if _is_narrow(updates, floats):
            shapes = {n: _like_python(v, n not in strong) for n, v in hyperparams.items()}
            new = with_dtypes_of(new, jax.eval_shape(run, shapes, *operands))
        return new[0], InjectStatefulHyperparamsState(
            count=safe_increment(state.count),
            hyperparams=hyperparams,
            hyperparams_states={
                n: s.update(states[n], **extra_args) for n, s in call.schedules.items()
            },
            inner_state=new[1],
        )

    return GradientTransformation(init, update)


def _known(hyperparams: Any, call: _Call) -> dict[str, Any]:
    """Returns a copy of the hyperparameters, after checking their names."""
    names = call.numbers.keys() | call.schedules.keys()
    for name in hyperparams:
        if name not in names:
            place = "inject_hyperparams: update(updates, state), state.hyperparams"
            raise unknown_name("hyperparameter", name, names, where=place)
    return dict(hyperparams)


def _unshared(hyperparams: dict[str, Array], state: OptState) -> OptState:
    """Returns the state with copies where an array may be one of the hyperparameters.

    `full_like` of a scalar returns the very array that it is given. A state with one buffer
    twice can't be donated.
    """
    shapes = {value.shape for value in hyperparams.values()}
    return jax.tree.map(
        lambda leaf: (
            jnp.copy(leaf) if isinstance(leaf, jax.Array) and leaf.shape in shapes else leaf
        ),
        state,
    )


def _like_python(value: Array, weak: bool) -> jax.ShapeDtypeStruct:
    weak = weak and jnp.issubdtype(value.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, weak_type=weak)


def _float_dtype(tree: PyTree) -> Any:
    """Returns float32, or what is wider of the leaves (real also for complex ones)."""
    dtypes = [jnp.finfo(d).dtype for d in _dtypes(tree) if jnp.issubdtype(d, jnp.inexact)]
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def _is_narrow(tree: PyTree, floats: DTypeLike) -> bool:
    """Whether a leaf would be widened by what it is multiplied with."""
    wide = jnp.dtype(floats)
    reals = [jnp.finfo(d).dtype for d in _dtypes(tree) if jnp.issubdtype(d, jnp.inexact)]
    return any(real != wide and real.itemsize <= wide.itemsize for real in reals)


def _dtypes(tree: PyTree) -> list[np.dtype[Any]]:
    return [jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(tree)]


def _names(static_args: Any) -> frozenset[str]:
    names = (static_args,) if isinstance(static_args, str) else static_args
    if not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
        raise ArgumentTypeError(
            f"static_args={static_args!r} is not a name or names",
            where="inject_hyperparams",
            fix='pass names of arguments, such as static_args=("mask",)',
        )
    return frozenset(names)


def _signature(factory: Any, static: frozenset[str]) -> inspect.Signature:
    if not callable(factory):
        raise ArgumentTypeError(
            f"inner_factory={factory!r} is not callable",
            where="inject_hyperparams",
            fix="pass the factory itself: inject_hyperparams(sgd)(learning_rate=0.1)",
        )
    signature = inspect.signature(factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in sorted(static - set(signature.parameters)):
        if not open_ended:
            place = "inject_hyperparams(static_args=...)"
            raise unknown_name("argument", name, signature.parameters, where=place)
    return signature


def _text(factory: Any, static: frozenset[str], dtype: Any) -> str | None:
    """Returns the source of the factory that is made, for factories of this package."""
    name = getattr(factory, "__qualname__", "<unnamed>")
    if "<" in name or not getattr(factory, "__module__", "").startswith("flaxtrain."):
        return None
    words = [name]
    words += [f"static_args={tuple(sorted(static))!r}"] if static else []
    words += [f"hyperparam_dtype={np.dtype(dtype).name!r}"] if dtype is not None else []
    return f"inject_hyperparams({', '.join(words)})"
