"""Changing hyperparameters while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.optim import NAMED
from flaxtrain.spec.assignment import Assignment
from flaxtrain.spec.group import DEFAULT
from flaxtrain.spec.hyperparameters import CLIP_NUMBERS, SPEC_NUMBERS
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.spec.parts import shared_numbers
from flaxtrain.spec.state import OptState
from flaxtrain.text import kind_of
from flaxtrain.typing import ArrayLike

__all__ = ["set_hyperparameters"]

State = TypeVar("State")


def _known(spec: OptSpec) -> tuple[str, ...]:
    own = () if spec.name is None else NAMED[spec.name].hyperparameters
    return (*SPEC_NUMBERS, *own)


def set_hyperparameters(
    state: State, tx: Any = None, *, group: str = DEFAULT, **values: ArrayLike
) -> State:
    """Returns the state with some numbers of one group changed; nothing is compiled anew.

    Numbers that follow a schedule, those that were off when the run was built (None, or a
    weight decay of 0), and those that are read only when slots begin (the learning rate of
    `rprop`) can't be edited. A checkpoint keeps what was edited.

    Args:
        state: a `TrainState`, or the `OptState` of what `build` made.
        tx: what `build` made; not needed for a `TrainState`.
        group: the name of the group. A method that treats all parameters together
            (`noisy_sgd`) has its own numbers only once: they change for all of its groups.
        **values: the new values: `learning_rate`, `weight_decay`, the number of a kind of
            clipping (`clip_norm`, `clip_value`, `clip_block_rms`, `clip_ratio`, `clip_z`), or a
            hyperparameter of the optimizer. The clipping of the group `"default"` is that of
            the whole gradient.

    Raises:
        UnknownNameError: there is no such group, or hyperparameter.
        ArgumentError: a value is out of range, or can't be edited.
        ArgumentTypeError: `state` was not built from a spec.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> from flaxtrain.spec import OptSpec, build
        >>> tx = build(OptSpec("adam", 0.1), param_facts(nn.Dense(1), jnp.ones((1, 2))))
        >>> state = tx.init({"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)})
        >>> state = set_hyperparameters(state, tx, learning_rate=0.01)
        >>> print(state.hyperparams["default"]["learning_rate"])
        0.01
    """
    inner: Any = getattr(state, "opt_state", state)
    tx = getattr(state, "tx", tx)
    assignment = getattr(tx, "arguments", {}).get("assignment")
    if not isinstance(inner, OptState) or not isinstance(assignment, Assignment):
        raise ArgumentTypeError(
            f"{kind_of(inner)} with tx={type(tx).__name__} was not built from a spec",
            where="set_hyperparameters",
            fix="pass a TrainState of the trainer, or an OptState and the tx that made it",
        )
    where = f"set_hyperparameters(group={group!r})"
    if group not in inner.hyperparams:
        raise unknown_name("group", group, inner.hyperparams, where=where)
    about = assignment.group(group)
    for name in values:
        if name not in _known(about.spec):
            raise unknown_name(
                "hyperparameter", name, about.hyperparameters.numbers, where=where
            )
        about.hyperparameters.check_editable(name, where=where)
        if about.spec.name is not None and name in NAMED[about.spec.name].initial_only:
            raise ArgumentError(
                f"{about.spec.name} reads {name!r} only when slots begin",
                where=where,
                fix="build the run with it, or choose another optimizer",
            )
    for name, value in values.items():
        if value is None or callable(value):
            raise ArgumentTypeError(
                f"{name}={value!r} is {kind_of(value)}, not a number",
                where=where,
                fix="pass a number; schedules, and what is off, are said in the spec",
            )
    _check_ranges(about.spec, values, where)
    new = {n: about.hyperparameters.value(n, v, where=where) for n, v in values.items()}
    table = {**inner.hyperparams, group: PackedNumbers.of({**inner.hyperparams[group], **new})}
    shared = {name: value for name, value in new.items() if name in shared_numbers(about)}
    for other in assignment.groups:
        if shared and other.spec.name == about.spec.name:
            table[other.name] = PackedNumbers.of({**table[other.name], **shared})
    edited = inner._replace(hyperparams=table)
    result: Any = edited if inner is state else _with(state, edited)
    return result


def _check_ranges(spec: OptSpec, values: Mapping[str, Any], where: str) -> None:
    bounds = {name: value for name, value in values.items() if name in CLIP_NUMBERS}
    for name, value in bounds.items():
        check_number(name, value, minimum=0.0, exclude=(0.0,), where=where)
    spec.replace(**{name: value for name, value in values.items() if name not in bounds})


def _with(state: Any, opt_state: OptState) -> Any:
    return state.replace(opt_state=opt_state)
