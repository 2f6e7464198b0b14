"""One cycle: up to a peak, and down again far below where it began.

Smith & Topin 2017, arXiv:1708.07120 (Super-Convergence). With T transition steps, the peak p
and the divisors d and e, the value goes through
    linear:  p/d at 0,  p at pct_start T,  p/d at pct_final T,  p/(d e) at T
    cosine:  p/d at 0,  p at pct_start T,  p/(d e) at T
The schedules keep the arguments they were called with, and are a piecewise interpolation
underneath, with the inner knots at whole steps, rounded down.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar

from flaxtrain.answering import answering
from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import Field, Steps, check_steps, check_value, extent
from flaxtrain.schedules.piecewise import (
    PiecewiseInterpolateSchedule,
    piecewise_interpolate_schedule,
)
from flaxtrain.typing import ArrayLike

__all__ = [
    "CosineOnecycleSchedule",
    "LinearOnecycleSchedule",
    "OnecycleSchedule",
    "cosine_onecycle_schedule",
    "linear_onecycle_schedule",
]


class OnecycleSchedule(Schedule):
    """What the two have in common: a peak, and divisors of it."""

    durations: ClassVar[tuple[str, ...]] = ("transition_steps",)
    interpolate_type: ClassVar[str]

    # Fields of the subclasses, which have them in different places.
    transition_steps: Field
    peak_value: Field
    pct_start: Field
    div_factor: Field
    final_div_factor: Field

    def check(self) -> None:
        """Refuses what is out of range, and a cycle too short for its phases."""
        check_steps("transition_steps", self.transition_steps, positive=True, where=self.kind)
        check_value("peak_value", self.peak_value, where=self.kind)
        check_number("pct_start", self.pct_start, minimum=0.0, maximum=1.0, where=self.kind)
        for name in ("div_factor", "final_div_factor"):
            check_number(
                name, getattr(self, name), minimum=0.0, exclude=(0.0,), where=self.kind
            )
        if not is_concrete(self.transition_steps) or not is_concrete(self.pct_start):
            raise ArgumentTypeError(
                "the length of a phase is not known while tracing",
                where=self.kind,
                fix="pass transition_steps and the fractions as numbers; other values may vary",
            )
        if self.is_resolved and sorted(set(self.ends())) != self.ends():
            raise ArgumentError(
                f"phases don't end one after the other, but at {self.ends()}",
                where=self.kind,
                fix="pass more transition_steps, or fractions in order and further apart",
            )

    @abc.abstractmethod
    def ends(self) -> list[Any]:
        """Returns the steps at which the phases end."""

    @abc.abstractmethod
    def factors(self) -> list[Any]:
        """Returns by how much each phase multiplies the value."""

    def joined(self) -> PiecewiseInterpolateSchedule:
        """Returns the interpolation that this schedule is."""
        return piecewise_interpolate_schedule(
            self.interpolate_type,
            self.peak_value / self.div_factor,
            dict(zip(self.ends(), self.factors(), strict=True)),
        )

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        return self.joined().at(count)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the lowest and the highest value between two phases."""
        return extent(
            *accumulate(self.factors(), mul, initial=self.peak_value / self.div_factor)
        )


@dataclass(frozen=True, eq=False, repr=False)
class LinearOnecycleSchedule(OnecycleSchedule):
    """Three lines; made by `linear_onecycle_schedule`."""

    kind: ClassVar[str] = "linear_onecycle_schedule"
    interpolate_type: ClassVar[str] = "linear"

    transition_steps: Field
    peak_value: Field
    pct_start: Field = 0.3
    pct_final: Field = 0.85
    div_factor: Field = 25.0
    final_div_factor: Field = 1e4

    def check(self) -> None:
        """Refuses also a second phase that ends before the first or after the cycle."""
        check_number("pct_final", self.pct_final, minimum=0.0, maximum=1.0, where=self.kind)
        super().check()

    def ends(self) -> list[Any]:
        """Returns the steps of the peak, of the return to the first value, and of the end."""
        T = self.transition_steps
        return [int(self.pct_start * T), int(self.pct_final * T), T]

    def factors(self) -> list[Any]:
        """Returns the factors up to the peak, back, and down."""
        return [self.div_factor, 1.0 / self.div_factor, 1.0 / self.final_div_factor]


@dataclass(frozen=True, eq=False, repr=False)
class CosineOnecycleSchedule(OnecycleSchedule):
    """Two halves of a cosine; made by `cosine_onecycle_schedule`."""

    kind: ClassVar[str] = "cosine_onecycle_schedule"
    interpolate_type: ClassVar[str] = "cosine"

    transition_steps: Field
    peak_value: Field
    pct_start: Field = 0.3
    div_factor: Field = 25.0
    final_div_factor: Field = 1e4

    def ends(self) -> list[Any]:
        """Returns the steps of the peak and of the end."""
        return [int(self.pct_start * self.transition_steps), int(self.transition_steps)]

    def factors(self) -> list[Any]:
        """Returns the factors up to the peak, and down."""
        return [self.div_factor, 1.0 / (self.div_factor * self.final_div_factor)]


@answering
def linear_onecycle_schedule(
    transition_steps: Steps,
    peak_value: ArrayLike,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> LinearOnecycleSchedule:
    """Returns a line up to `peak_value`, a line back, and a line far below.

    Args:
        transition_steps: the length of the whole cycle, steps (more than 0) or a duration;
            `"100%"` ends with the run.
        peak_value: the highest value.
        pct_start: where the peak is, a fraction of the cycle (0.3, not 30).
        pct_final: where the value is back at where it began, a fraction of the cycle.
        div_factor: it begins at `peak_value / div_factor`.
        final_div_factor: it ends at `peak_value / div_factor / final_div_factor`.

    Raises:
        ArgumentError: a value is not finite, a fraction is outside [0, 1], a divisor is not
            positive, or two phases end at the same step.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> cycle = linear_onecycle_schedule(20, peak_value=1.0, div_factor=4.0)
        >>> [round(float(cycle(count)), 3) for count in (0, 3, 6, 17, 20)]
        [0.25, 0.625, 1.0, 0.25, 0.0]
    """
    return LinearOnecycleSchedule(
        transition_steps, peak_value, pct_start, pct_final, div_factor, final_div_factor
    )


@answering
def cosine_onecycle_schedule(
    transition_steps: Steps,
    peak_value: ArrayLike,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> CosineOnecycleSchedule:
    """Returns half a cosine up to `peak_value`, and half a cosine far below.

    Args:
        transition_steps: the length of the whole cycle, steps (more than 0) or a duration;
            `"100%"` ends with the run.
        peak_value: the highest value.
        pct_start: where the peak is, a fraction of the cycle (0.3, not 30).
        div_factor: it begins at `peak_value / div_factor`.
        final_div_factor: it ends at `peak_value / div_factor / final_div_factor`.

    Raises:
        ArgumentError: a value is not finite, a fraction is outside [0, 1], a divisor is not
            positive, or both phases end at the same step.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> cycle = cosine_onecycle_schedule(20, peak_value=1.0, div_factor=4.0)
        >>> [round(float(cycle(count)), 3) for count in (0, 3, 6, 13, 20)]
        [0.25, 0.625, 1.0, 0.5, 0.0]
    """
    return CosineOnecycleSchedule(
        transition_steps, peak_value, pct_start, div_factor, final_div_factor
    )
