"""Schedules made of schedules: one after the other, each starting again at 0.

`join_schedules` is the only combinator; no shape knows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import Field, Steps, check_steps, is_known, within
from flaxtrain.typing import ArrayLike

__all__ = ["JoinedSchedule", "join_schedules"]


@dataclass(frozen=True, eq=False, repr=False)
class JoinedSchedule(Schedule):
    """One schedule after the other; made by `join_schedules`."""

    kind: ClassVar[str] = "join_schedules"
    durations: ClassVar[tuple[str, ...]] = ("boundaries",)

    schedules: tuple[Callable[[ArrayLike], ArrayLike], ...]
    boundaries: tuple[Field, ...]

    def check(self) -> None:
        """Refuses what is not callable, and boundaries that don't fit or are out of order."""
        for position, schedule in enumerate(self.schedules):
            if not callable(schedule):
                raise ArgumentTypeError(
                    f"schedules[{position}]={schedule!r} is not a schedule",
                    where=self.kind,
                    fix="pass schedules, or functions of the count (constant_schedule(x))",
                )
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ArgumentError(
                f"{len(self.schedules)} schedules, {len(self.boundaries)} boundaries",
                where=self.kind,
                fix="pass one boundary between neighbours: one fewer than schedules",
            )
        for boundary in self.boundaries:
            check_steps("boundaries", boundary, where=self.kind)
        if is_known(*self.boundaries) and list(self.boundaries) != sorted(self.boundaries):
            raise ArgumentError(
                f"boundaries={list(self.boundaries)} are not in order",
                where=self.kind,
                fix=f"pass them in ascending order: {sorted(self.boundaries)}",
            )

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value of the schedule whose turn it is."""
        result = self.schedules[0](count)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            boundary = within(boundary, count)
            result = jnp.where(count < boundary, result, schedule(_since(count, boundary)))
        return result

    def extremes(self) -> tuple[float, float] | None:
        """Returns the bounds of all parts together; None if a part is a plain function."""
        bounds = [
            part.extremes() if isinstance(part, Schedule) else None for part in self.schedules
        ]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds):
            return None
        return min(low for low, _ in known), max(high for _, high in known)


def _since(count: Any, boundary: Any) -> Any:
    """Counts from the boundary, 0 before it: later schedules never see a negative count."""
    if isinstance(count, int) and is_known(boundary):
        return max(count - boundary, 0)
    return jnp.maximum(count, boundary) - boundary


@answering
def join_schedules(
    schedules: Sequence[Callable[[ArrayLike], ArrayLike]], boundaries: Sequence[Steps]
) -> JoinedSchedule:
    """Returns one schedule after the other.

    From `boundaries[i]` on, `schedules[i + 1]` is used, and sees the count since that boundary.

    Args:
        schedules: at least one; ours or any function of the count.
        boundaries: the step at which each next schedule takes over, ascending, one fewer than
            schedules; steps or durations. Equal boundaries skip the schedule between them.

    Raises:
        ArgumentError: the numbers of schedules and boundaries don't fit, or boundaries are
            negative or out of order.
        ArgumentTypeError: a schedule is not callable, or a boundary is not a number or
            duration.

    Example:
        >>> from flaxtrain.schedules import constant_schedule, linear_schedule
        >>> steps = join_schedules([linear_schedule(0.0, 1.0, 4), constant_schedule(0.1)], [4])
        >>> [round(float(steps(count)), 2) for count in (0, 2, 3, 4, 9)]
        [0.0, 0.5, 0.75, 0.1, 0.1]
    """
    return JoinedSchedule(tuple(schedules), tuple(boundaries))
