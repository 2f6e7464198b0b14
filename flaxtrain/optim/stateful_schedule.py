"""Schedules with a state of their own, and plain ones seen as such."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.typing import ArrayLike, Schedule

__all__ = ["StatefulSchedule", "WrappedSchedule", "WrappedScheduleState"]


@runtime_checkable
class StatefulSchedule(Protocol):
    """A schedule with a state of its own, which sees the extra arguments of `update`."""

    def init(self) -> Any:
        """Returns the state before the first update."""
        ...

    def update(self, state: Any, **extra_args: Any) -> Any:
        """Returns the next state."""
        ...

    def __call__(self, state: Any, **extra_args: Any) -> ArrayLike:
        """Returns the value."""
        ...


class WrappedScheduleState(NamedTuple):
    """Number of updates, int32: what the schedule is asked for next."""

    count: Any  # an Array


class WrappedSchedule:
    """A function of the count as a `StatefulSchedule`.

    Args:
        schedule_fn: maps the number of updates already applied (int32 scalar) to a number.

    Example:
        >>> schedule = WrappedSchedule(lambda count: 1.0 / (1 + count))
        >>> state = schedule.update(schedule.init())
        >>> print(schedule(state))
        0.5
    """

    def __init__(self, schedule_fn: Schedule) -> None:
        if not callable(schedule_fn):
            raise ArgumentTypeError(
                f"schedule_fn={schedule_fn!r} is not callable",
                where="WrappedSchedule",
                fix="pass a function from the count to a number",
            )
        self.schedule_fn = schedule_fn

    def init(self) -> WrappedScheduleState:
        """Returns a count of 0."""
        return WrappedScheduleState(jnp.zeros([], jnp.int32))

    def update(self, state: WrappedScheduleState, **extra_args: Any) -> WrappedScheduleState:
        """Returns the next count."""
        return WrappedScheduleState(safe_increment(state.count))

    def __call__(self, state: WrappedScheduleState, **extra_args: Any) -> ArrayLike:
        """Returns the value at the count."""
        return self.schedule_fn(state.count)
