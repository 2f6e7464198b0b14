"""The learning rates that an optimizer applied last, whatever it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp

from flaxtrain.checks import is_concrete
from flaxtrain.errors import ArgumentError
from flaxtrain.optim import GradientTransformation, ScaleByScheduleState
from flaxtrain.spec.group import DEFAULT
from flaxtrain.spec.state import OptState
from flaxtrain.typing import Array, ArrayLike

__all__ = ["applied_learning_rates", "get_lr"]

Rate: TypeAlias = ArrayLike | Callable[[ArrayLike], ArrayLike]
"""A learning rate: a number, or a function of the number of updates already applied."""


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
    return _by_group(list(_applied(tx, opt_state))) or {DEFAULT: None}


def get_lr(state: Any, tx: Any = None) -> Array | dict[str, Array | None] | None:
    """Returns the learning rate that the last update applied.

    Works for constants and schedules, chains, accumulation, masks and groups, and for
    `inject_hyperparams` at any depth if the injected argument is called `learning_rate`; where
    a chain has no learning rate but factors, it is their product.

    Args:
        state: a `TrainState` (ours or flax's), or the state of an optimizer.
        tx: the optimizer; not needed for a `TrainState`, for what a spec built, and where the
            state holds the rate itself.

    Returns:
        A float32 scalar; None where the rate is not known (another library's object without
        `inject_hyperparams`, our object's state without `tx`). For several groups a dict from
        their names to one of these.

    Example:
        >>> from flaxtrain import optim
        >>> tx = optim.MultiSteps(optim.adam(lambda count: 0.5**count), 2)
        >>> state = tx.init(jnp.float32(1.0))
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.float32(1.0), state)
        >>> print(get_lr(state, tx))
        0.5
        >>> parts = {"head": optim.sgd(1.0), "body": optim.sgd(0.25)}
        >>> tx = optim.partition(parts, {"w": "body", "v": "head"})
        >>> print(get_lr(tx.init({"w": 1.0, "v": 1.0}), tx)["body"])
        0.25
    """
    if hasattr(state, "opt_state"):
        state, tx = state.opt_state, getattr(state, "tx", tx)
    rates = applied_learning_rates(state, tx)
    return next(iter(rates.values())) if len(rates) == 1 else rates


_INNER = ("inner_opt_state", "inner_state", "fast_state")
"""Fields in which a wrapper's state holds the state of what it wraps."""

Found: TypeAlias = tuple[str, Any]
"""A learning rate and the name of what has it."""


def _applied(tx: Any, state: Any) -> Iterator[Found]:
    """Yields the rates last applied, by walking an optimizer and its state side by side."""
    if (own := _injected(state)) is not None:
        yield "", jnp.asarray(own, jnp.float32)
    elif not isinstance(tx, GradientTransformation):
        for node in _nodes(state):
            if (own := _injected(node)) is not None:
                yield "", jnp.asarray(own, jnp.float32)
    elif (rate := _own_rate(tx)) is not None:
        yield str(tx.name), _last(rate, state)
    elif tx.name == "partition" and hasattr(state, "inner_states"):
        for label, part in tx.arguments["transforms"].items():
            for _, rate in _applied(part, state.inner_states[label]):
                yield str(label), rate
    elif tx.name in ("chain", "named_chain"):
        yield from _applied_in_chain(tx, state)
    else:
        inside = next((getattr(state, f) for f in _INNER if hasattr(state, f)), state)
        parts = [v for v in tx.arguments.values() if _is_transformation(v)]
        for part in parts or [None]:
            yield from _applied(part, inside)


def _applied_in_chain(tx: GradientTransformation, state: Any) -> Iterator[Found]:
    parts = list(tx.arguments.get("*", ()))
    if tx.name == "named_chain":
        parts = [part for _, part in parts]
    states = list(state.values() if isinstance(state, Mapping) else state)
    if len(states) != len(parts):
        states = [state] * len(parts)
    found = [rate for pair in zip(parts, states) for rate in _applied(*pair)]
    if found:
        yield from found
        return
    given = [(f, s) for part, s in zip(parts, states) if (f := _factor(part)) is not None]
    factors = [rate for rate in (_last(*pair) for pair in given) if rate is not None]
    if factors and len(factors) == len(given):
        product = math.prod(factors[1:], start=factors[0])
        # Descent: what is added to the parameters is minus the rate times the direction.
        if not is_concrete(product) or product <= 0:
            yield "chain", -jnp.asarray(product, jnp.float32)


def _factor(part: Any) -> Rate | None:
    """Returns the factor by which a part multiplies everything, where it is such a part."""
    arguments = getattr(part, "arguments", {})
    if getattr(part, "name", None) == "scale":
        return arguments.get("step_size", arguments.get("learning_rate"))
    if getattr(part, "name", None) == "scale_by_schedule":
        return arguments.get("step_size_fn")
    return None


def _last(rate: Rate, state: Any) -> Array | None:
    """Returns the rate at the count of the last update; None without a count."""
    if not callable(rate):
        return jnp.asarray(rate_at(rate, 0), jnp.float32)
    nodes = list(_nodes(state))
    counts = [node.count for node in nodes if isinstance(node, ScaleByScheduleState)]
    # Methods that read their schedule themselves have a count of their own.
    counts += [n.count for n in nodes if "count" in getattr(n, "_fields", ())]
    if not counts:
        return None
    return jnp.asarray(rate_at(rate, jnp.maximum(counts[0] - 1, 0)), jnp.float32)


def _own_rate(tx: GradientTransformation) -> Rate | None:
    # `scale(learning_rate=-1e-3)` is a factor, with its sign.
    return None if tx.name == "scale" else tx.arguments.get("learning_rate")


def _is_transformation(value: Any) -> bool:
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _nodes(state: Any) -> Iterator[Any]:
    """Yields every node of a state: named tuples, tuples, lists, dicts, and what they hold."""
    yield state
    children = state.values() if isinstance(state, Mapping) else state
    if isinstance(state, (Mapping, tuple, list)):
        for child in children:
            yield from _nodes(child)


def _injected(node: Any) -> Any:
    """Returns the learning rate that a state of `inject_hyperparams` holds, or None."""
    hyperparams = getattr(node, "hyperparams", None)
    return hyperparams.get("learning_rate") if isinstance(hyperparams, Mapping) else None


def _by_group(found: list[Found]) -> dict[str, Any]:
    """Names several rates after what has them, with a number where names repeat."""
    if len(found) == 1:
        return {DEFAULT: found[0][1]}
    names = [name or DEFAULT for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name)}": rate
        for index, (name, (_, rate)) in enumerate(zip(names, found))
    }


def rates_of(tx: Any) -> dict[str, Rate]:
    """Returns the learning rates that an optimizer of ours was made with, by group.

    A single one is the group `"default"`; of several, each is named after the optimizer that
    has it, or its label, with a number where names repeat. Other libraries' objects have none
    that we can see.
    """
    return _by_group(list(_rates(tx)))


def _rates(value: Any) -> Iterator[Found]:
    if isinstance(value, GradientTransformation):
        if _own_rate(value) is not None:
            yield str(value.name), _own_rate(value)
        elif value.name == "partition":
            for label, part in value.arguments["transforms"].items():
                yield from ((str(label), rate) for _, rate in _rates(part))
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
