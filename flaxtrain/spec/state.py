"""The state of what `build` makes, and the learning rates that were applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from flaxtrain.errors import ArgumentError
from flaxtrain.optim import GradientTransformation, ScaleByScheduleState
from flaxtrain.typing import Array, ArrayLike

__all__ = ["OptState", "applied_learning_rates"]

Rate: TypeAlias = ArrayLike | Callable[[ArrayLike], ArrayLike]
"""A learning rate: a number, or a function of the number of updates already applied."""

DEFAULT = "default"
"""The name of the group of all parameters that are in no other."""


class OptState(NamedTuple):
    """The state of a transformation that was built from a spec.

    Attributes:
        count: int32 scalar, the number of updates applied.
        learning_rates: for each group, the rate that the last update applied, a float32 scalar;
            0 before the first one. Empty where an optimizer object does not tell.
        slots: for a named optimizer, a tree like the parameters for each slot, by the slot's
            name; for an object, the object's own state.
    """

    count: Any  # an Array; `count` is also a method of tuple
    learning_rates: dict[str, Array]
    slots: Any


def applied_learning_rates(opt_state: Any, tx: Any = None) -> dict[str, Array | None]:
    """Returns the learning rates that the last update applied, by group.

    They are known for all that a spec builds by name and for our own optimizers; for another
    library's, where its state holds `hyperparams["learning_rate"]`.

    Args:
        opt_state: the state of `tx`.
        tx: the transformation; not needed for what `build` made.

    Returns:
        Group to float32 scalar, or to None where the rate is not known.

    Example:
        >>> from flaxtrain import optim
        >>> tx = optim.sgd(lambda count: 1.0 / (1 + count))
        >>> state = tx.init(jnp.float32(1.0))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.float32(1.0), state)
        >>> print(applied_learning_rates(state, tx)["default"])
        0.5
    """
    if isinstance(opt_state, OptState):
        if opt_state.learning_rates:
            return dict(opt_state.learning_rates)
        opt_state = opt_state.slots
    injected = [rate for node in _nodes(opt_state) for rate in _injected(node)]
    if len(injected) == 1:
        return {DEFAULT: jnp.asarray(injected[0], jnp.float32)}
    rates = rates_of(tx)
    scheduled = (node for node in _nodes(opt_state) if isinstance(node, ScaleByScheduleState))
    counts = [node.count for node in scheduled]
    if not rates or (not counts and any(map(callable, rates.values()))):
        return dict.fromkeys(rates or (DEFAULT,))
    last = jnp.maximum(counts[0] - 1, 0) if counts else 0
    return {
        group: jnp.asarray(rate_at(rate, last), jnp.float32) for group, rate in rates.items()
    }


def _nodes(state: Any) -> Iterator[Any]:
    """Yields every node of a state: named tuples, tuples, lists, dicts, and what they hold."""
    yield state
    children = state.values() if isinstance(state, Mapping) else state
    if isinstance(state, (Mapping, tuple, list)):
        for child in children:
            yield from _nodes(child)


def _injected(node: Any) -> list[Any]:
    hyperparams = getattr(node, "hyperparams", None)
    if not isinstance(hyperparams, Mapping) or "learning_rate" not in hyperparams:
        return []
    return [hyperparams["learning_rate"]]


def rates_of(tx: Any) -> dict[str, Rate]:
    """Returns the learning rates that an optimizer of ours was made with, by group.

    A single one is the group `"default"`; of several, each is named after the optimizer that
    has it, with a number where names repeat. Other libraries' objects have none that we can
    see.
    """
    found = list(_rates(tx))
    if len(found) == 1:
        return {DEFAULT: found[0][1]}
    names = [name for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name)}": rate
        for index, (name, rate) in enumerate(found)
    }


def _rates(value: Any) -> Iterator[tuple[str, Rate]]:
    if isinstance(value, GradientTransformation):
        if value.arguments.get("learning_rate") is not None:
            yield str(value.name), value.arguments["learning_rate"]
        else:
            yield from _rates(value.arguments)
    elif isinstance(value, (Mapping, tuple, list)):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _rates(child)


def rate_at(rate: Rate, count: ArrayLike) -> ArrayLike:
    """Returns the rate at a count, a scalar.

    Raises:
        ArgumentError: the rate is an array with axes.
    """
    value = rate(count) if callable(rate) else rate
    if jnp.shape(value) != ():
        raise ArgumentError(
            f"the learning rate has shape {jnp.shape(value)}, not that of a scalar",
            where=f"learning_rate={rate!r}",
            fix="return one number for each count",
        )
    return value
