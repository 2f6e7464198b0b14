"""The optimizer protocol: a pair of pure functions, and what they were made from.

`init(params)` and `update(updates, state, params=None, **extra_args)` are the field's own
(optax's), so objects of either library run inside the other. Ours also know their name and
arguments, so that they print, compare, hash and serialise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    NamedTuple,
    ParamSpec,
    Protocol,
    runtime_checkable,
)

import numpy as np

from flaxtrain.answering import answering
from flaxtrain.errors import ArgumentTypeError, FlaxtrainError, ParameterError
from flaxtrain.typing import OptState, Params, Updates

__all__ = [
    "EmptyState",
    "GradientTransformation",
    "InitFn",
    "TransformationLike",
    "UpdateFn",
    "answering",
    "identity",
    "named",
    "require_params",
    "same_value",
    "stateless",
    "with_extra_args",
]

P = ParamSpec("P")


@runtime_checkable
class InitFn(Protocol):
    """`init(params) -> state`."""

    def __call__(self, params: Params, /) -> OptState:
        """Returns the state before the first update."""
        ...


@runtime_checkable
class UpdateFn(Protocol):
    """`update(updates, state, params=None, **extra_args) -> (updates, state)`."""

    def __call__(
        self, updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        """Returns the transformed updates and the new state."""
        ...


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


@runtime_checkable
class TransformationLike(Protocol):
    """Anything with `init` and `update`: ours, optax's, or a user's own pair."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(params) -> state`."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """`update(updates, state, params=None) -> (updates, state)`."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class GradientTransformation:
    """A gradient transformation: two pure functions, and what they were made from.

    Unpacks as `init, update = tx`, and is indexed like that pair. Every `update` of this
    package ignores extra keyword arguments that it does not need; one of yours may do without
    them, see `with_extra_args`. Two transformations are equal when they were
    made by the same named factory from equal arguments; one without a name is equal to itself
    only.

    Attributes:
        init: `init(params) -> state`.
        update: `update(updates, state, params=None, **extra_args) -> (updates, state)`.
        name: the factory that made it.
        arguments: the factory's arguments that differ from its defaults.
        factory: the factory itself; others may have its name.

    Example:
        >>> from flaxtrain import optim
        >>> optim.sgd(0.1)
        sgd(learning_rate=0.1)
        >>> optim.sgd(0.1) == optim.sgd(0.1), optim.sgd(0.1) == optim.sgd(0.2)
        (True, False)
        >>> init, update = optim.sgd(0.1)
    """

    init: InitFn
    update: UpdateFn
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    factory: Callable[..., Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        yield self.init
        yield self.update

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (self.init, self.update)[index]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if (
            not isinstance(other, GradientTransformation)
            or self.name is None
            or self.name != other.name
            or self.factory is not other.factory
        ):
            return False
        return self.arguments.keys() == other.arguments.keys() and all(
            same_value(value, other.arguments[key]) for key, value in self.arguments.items()
        )

    def __hash__(self) -> int:
        return object.__hash__(self) if self.name is None else hash(self.name)

    def __repr__(self) -> str:
        if self.name is None:
            return f"GradientTransformation(init={self.init!r}, update={self.update!r})"
        parts = (
            ", ".join(map(repr, value)) if key == "*" else f"{key}={value!r}"
            for key, value in self.arguments.items()
        )
        return f"{self.name}({', '.join(part for part in parts if part)})"


def same_value(a: Any, b: Any) -> bool:
    """Whether two arguments are of one type and equal; arrays only if they are the same object.

    Arrays are never compared by value: their `==` is not a truth value, and costs a transfer.

    Example:
        >>> same_value((1, {"mask": True}), (1, {"mask": True})), same_value(1, 1.0)
        (True, False)
    """
    if a is b:
        return True
    if hasattr(a, "shape") or hasattr(b, "shape") or type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # the `==` of a foreign object is not a truth value either
        return False


def named(
    factory: Callable[P, GradientTransformation],
) -> Callable[P, GradientTransformation]:
    """Decorates a factory so that what it returns knows its name and arguments.

    Kept are the arguments that differ from the defaults; a dtype is kept by its name, `*args`
    under the key `"*"`. Calls that do not bind are answered as by `answering`. Errors name this
    factory, unless they name a place of their own (more than the name of a function).
    """
    signature = inspect.signature(factory)
    kinds = {key: parameter.kind for key, parameter in signature.parameters.items()}

    @answering
    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
        given: dict[str, Any] = {}
        for key, value in signature.bind(*args, **kwargs).arguments.items():
            value = _dtype_name(value)
            if not same_value(value, signature.parameters[key].default):
                given["*" if kinds[key] is inspect.Parameter.VAR_POSITIONAL else key] = value
        try:
            made = factory(*args, **kwargs)
        except FlaxtrainError as error:
            # A check inside may know the rule, or a part of the chain; the caller knows this.
            if error.where is not None and not error.where.isidentifier():
                raise
            raise type(error)(error.found, where=factory.__name__, fix=error.fix) from None
        return replace(made, name=factory.__name__, arguments=given, factory=build)

    return build


def _dtype_name(value: Any) -> Any:
    """Returns the name of a dtype (it prints and goes through JSON); else `value`."""
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    return value


@named
def identity() -> GradientTransformation:
    """Returns the transformation that leaves updates as they are.

    Example:
        >>> identity().update({"w": 1.0}, EmptyState())
        ({'w': 1.0}, EmptyState())
    """
    return stateless(lambda updates, params: updates)


def stateless(function: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """Makes a transformation without state from `function(updates, params) -> updates`.

    Example:
        >>> double = stateless(lambda updates, params: updates * 2)
        >>> double.update(3.0, double.init(None))
        (6.0, EmptyState())
    """

    def init(params: Params, /) -> EmptyState:
        return EmptyState()

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return function(updates, params), state

    return GradientTransformation(init, update)


def require_params(params: Params | None, who: object) -> None:
    """Refuses an `update` without parameters.

    Args:
        params: what `update` got.
        who: what needs them, for the message.

    Raises:
        ParameterError: `params` is None.

    Example:
        >>> require_params({"w": 1.0}, "weight decay")
    """
    if params is None:
        raise ParameterError(
            f"{who} needs the parameters, and got none",
            where="update(updates, state, params=None)",
            fix="call update(updates, state, params)",
        )


def with_extra_args(tx: TransformationLike) -> GradientTransformation:
    """Returns `tx` with an `update` that accepts any extra keyword argument.

    Of a transformation of our class whose `update` has `**kwargs` that is the object itself.
    Otherwise arguments that `update` does not name are dropped, so a pair of functions without
    extra arguments can stand in a chain with one that needs them.

    Raises:
        ArgumentTypeError: `tx` has no `init` and `update`.

    Example:
        >>> plain = GradientTransformation(lambda params: (), lambda u, s, p=None: (2 * u, s))
        >>> with_extra_args(plain).update(3.0, (), value=1.0)
        (6.0, ())
    """
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise ArgumentTypeError(
            f"{tx!r} is not a gradient transformation",
            fix="pass an object with init(params) and update(updates, state, params)",
        )
    parameters = inspect.signature(tx.update).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if isinstance(tx, GradientTransformation) and takes_all:
        return tx

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return tx.update(
            updates, state, params, **{k: v for k, v in extra_args.items() if k in parameters}
        )

    if isinstance(tx, GradientTransformation):
        return replace(tx, update=update)
    return GradientTransformation(tx.init, tx.update if takes_all else update)
