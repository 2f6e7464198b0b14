"""Multiplying all updates by one number: a constant, a learning rate, a schedule."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_flag, check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.transform import (
    EmptyState,
    GradientTransformation,
    identity,
    named,
    stateless,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import Array, ArrayLike, OptState, Params, Schedule, Updates

__all__ = [
    "ScaleByScheduleState",
    "ScaleState",
    "check_learning_rate",
    "scale",
    "scale_by_learning_rate",
    "scale_by_schedule",
]


ScaleState = EmptyState
"""A constant factor remembers nothing."""


class ScaleByScheduleState(NamedTuple):
    """Number of updates, int32: what the schedule is asked for next."""

    count: Any  # an Array


def check_learning_rate(learning_rate: Any, *, where: str) -> None:
    """Refuses anything but a real number >= 0, a tracer or a callable.

    Raises:
        ArgumentTypeError: it is something else.
        ArgumentError: it is negative, NaN or infinite.

    Example:
        >>> check_learning_rate(1e-3, where="sgd")
    """
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, minimum=0.0, where=where)


@named
def scale(
    step_size: ArrayLike | None = None, *, learning_rate: ArrayLike | None = None
) -> GradientTransformation:
    """Makes the transformation that multiplies every update by `step_size`.

    Args:
        step_size: any finite number, or an array that broadcasts against every update.
        learning_rate: the same argument under another name. The sign is not turned: for
            descent it is negative, or use `scale_by_learning_rate`.

    Returns:
        A transformation without state.

    Raises:
        ArgumentTypeError: the value is not numeric, or both names or none are given.
        ArgumentError: the value is not finite.

    Example:
        >>> tx = scale(-0.5)
        >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(None))
        >>> print(updates["w"])
        [-0.5 -0.5]
    """
    if (step_size is None) == (learning_rate is None):
        raise ArgumentTypeError(
            f"{step_size=} and {learning_rate=}: exactly one is needed",
            where="scale",
            fix="pass the factor as step_size",
        )
    name, factor = ("step_size", step_size)
    if step_size is None:
        name, factor = ("learning_rate", learning_rate)
    _check_factor(name, factor)
    return stateless(lambda updates, params: jax.tree.map(lambda u: factor * u, updates))


def _check_factor(name: str, factor: Any) -> None:
    numeric = isinstance(factor, (numbers.Number, np.ndarray, np.generic, jax.Array))
    if not numeric or isinstance(factor, (bool, np.bool_)):
        raise ArgumentTypeError(
            f"{name}={factor!r} is {kind_of(factor)}, not a number",
            where="scale",
            fix="pass a number; for a function of the count use scale_by_schedule",
        )
    if is_concrete(factor) and not np.all(np.isfinite(np.asarray(factor))):
        raise ArgumentError(
            f"{name}={factor} is not finite", where="scale", fix="pass a finite number"
        )


@named
def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Makes the transformation that multiplies every update by a function of the count.

    The value is cast to the dtype of each update.

    Args:
        step_size_fn: maps the number of updates already applied (int32 scalar; 0 at the first
            call) to a number. The sign is not changed.

    Returns:
        A transformation whose state is a `ScaleByScheduleState`.

    Raises:
        ArgumentTypeError: `step_size_fn` is not callable.

    Example:
        >>> tx = scale_by_schedule(lambda count: 1.0 / (1 + count))
        >>> state = tx.init(None)
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.float32(1.0), state)
        >>> print(updates, state.count)
        0.25 4
    """
    if not callable(step_size_fn):
        raise ArgumentTypeError(
            f"step_size_fn={step_size_fn!r} is not callable",
            where="scale_by_schedule",
            fix="pass a schedule; for a constant use scale",
        )

    def init(params: Params, /) -> ScaleByScheduleState:
        return ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, ScaleByScheduleState]:
        step_size = step_size_fn(state.count)

        def scaled(update: ArrayLike) -> Array:
            update = jnp.asarray(update)
            return jnp.asarray(step_size, update.dtype) * update

        return jax.tree.map(scaled, updates), ScaleByScheduleState(safe_increment(state.count))

    return GradientTransformation(init, update)


@named
def scale_by_learning_rate(
    learning_rate: ArrayLike | Schedule | None = None, *, flip_sign: bool = True
) -> GradientTransformation:
    """Makes the last part of an optimizer: times the learning rate, and downhill.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
            None: updates are left as they are, their sign too.
        flip_sign: multiply by `-learning_rate`.

    Returns:
        A transformation without state; for a schedule, with a `ScaleByScheduleState`.

    Raises:
        ArgumentError: `learning_rate` is negative, NaN or infinite.
        ArgumentTypeError: `learning_rate` is neither a number nor callable, or `flip_sign` is
            not a bool.

    Example:
        >>> tx = scale_by_learning_rate(0.1)
        >>> updates, state = tx.update(jnp.float32(2.0), tx.init(None))
        >>> print(updates)
        -0.2
    """
    check_flag("flip_sign", flip_sign, where="scale_by_learning_rate")
    if learning_rate is None:
        return identity()
    check_learning_rate(learning_rate, where="scale_by_learning_rate")
    sign = -1 if flip_sign else 1
    if callable(learning_rate):
        return scale_by_schedule(lambda count: sign * jnp.asarray(learning_rate(count)))
    return scale(sign * learning_rate)
