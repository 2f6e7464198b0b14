"""Warm-up: a line from a small value to the peak, joined to what comes after it.

The schedules here keep the arguments they were called with, so that they print and serialise
as written, and are a joined schedule underneath.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from flaxtrain.answering import answering
from flaxtrain.errors import ArgumentError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.compose import JoinedSchedule, join_schedules
from flaxtrain.schedules.constant import constant_schedule
from flaxtrain.schedules.cosine import cosine_decay_schedule
from flaxtrain.schedules.exponential import ExponentialDecaySchedule, exponential_decay
from flaxtrain.schedules.fields import (
    Field,
    Steps,
    check_steps,
    check_value,
    extent,
    is_array,
    is_known,
)
from flaxtrain.schedules.polynomial import linear_schedule
from flaxtrain.typing import ArrayLike

__all__ = [
    "WarmupConstantSchedule",
    "WarmupCosineDecaySchedule",
    "WarmupExponentialDecaySchedule",
    "WarmupSchedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
]


@dataclass(frozen=True, eq=False, repr=False)
class WarmupSchedule(Schedule):
    """A line from `init_value` to `peak_value`, then what the subclass says."""

    init_value: Field
    peak_value: Field
    warmup_steps: Field

    @abc.abstractmethod
    def after(self) -> Schedule:
        """Returns the schedule that takes over after the warm-up, and starts at the peak."""

    def check(self) -> None:
        """Refuses values that are not finite, and a negative number of steps."""
        check_value("init_value", self.init_value, where=self.kind)
        check_value("peak_value", self.peak_value, where=self.kind)
        check_steps("warmup_steps", self.warmup_steps, where=self.kind)

    def joined(self) -> JoinedSchedule:
        """Returns the composition that this schedule is."""
        line = linear_schedule(self.init_value, self.peak_value, self.warmup_steps)
        return join_schedules([line, self.after()], [self.warmup_steps])

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        return self.joined().at(count)


@dataclass(frozen=True, eq=False, repr=False)
class WarmupConstantSchedule(WarmupSchedule):
    """A line, then its final value; made by `warmup_constant_schedule`."""

    kind: ClassVar[str] = "warmup_constant_schedule"
    durations: ClassVar[tuple[str, ...]] = ("warmup_steps",)

    def after(self) -> Schedule:
        """Returns the constant peak value."""
        return constant_schedule(self.peak_value)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the initial and the peak value, lowest first."""
        return extent(self.init_value, self.peak_value)


@dataclass(frozen=True, eq=False, repr=False)
class WarmupCosineDecaySchedule(WarmupSchedule):
    """A line, then a cosine; made by `warmup_cosine_decay_schedule`."""

    kind: ClassVar[str] = "warmup_cosine_decay_schedule"
    durations: ClassVar[tuple[str, ...]] = ("warmup_steps", "decay_steps")

    decay_steps: Field
    end_value: Field = 0.0
    exponent: Field = 1.0

    def check(self) -> None:
        """Refuses also a decay that is over before the warm-up is."""
        super().check()
        check_steps("decay_steps", self.decay_steps, where=self.kind)
        check_value("end_value", self.end_value, where=self.kind)
        check_value("exponent", self.exponent, minimum=0.0, where=self.kind)
        steps = (self.warmup_steps, self.decay_steps)
        if is_known(*steps) and self.decay_steps <= self.warmup_steps:
            raise ArgumentError(
                f"decay_steps={self.decay_steps} is not above warmup_steps={self.warmup_steps}",
                where=self.kind,
                fix="pass the length of the whole schedule, warm-up included, as decay_steps",
            )
        if self._starts_at_zero() and is_known(self.end_value) and self.end_value != 0:
            raise ArgumentError(
                f"peak_value=0 can't decay to end_value={self.end_value}",
                where=self.kind,
                fix="pass a peak_value that is not 0: the decay is a fraction of it",
            )

    def after(self) -> Schedule:
        """Returns the cosine from the peak value over the steps that the warm-up left."""
        alpha = 0.0 if self._starts_at_zero() else self.end_value / self.peak_value
        left = self.decay_steps - self.warmup_steps
        return cosine_decay_schedule(self.peak_value, left, alpha, self.exponent)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the lowest and highest of the initial, peak and final value."""
        return extent(self.init_value, self.peak_value, self.end_value)

    def _starts_at_zero(self) -> bool:
        return (
            is_known(self.peak_value) and not is_array(self.peak_value) and self.peak_value == 0
        )


@dataclass(frozen=True, eq=False, repr=False)
class WarmupExponentialDecaySchedule(WarmupSchedule):
    """A line, then an exponential; made by `warmup_exponential_decay_schedule`."""

    kind: ClassVar[str] = "warmup_exponential_decay_schedule"
    durations: ClassVar[tuple[str, ...]] = (
        "warmup_steps",
        "transition_steps",
        "transition_begin",
    )

    transition_steps: Field
    decay_rate: Field
    transition_begin: Field = 0
    staircase: bool = False
    end_value: Field = None

    def check(self) -> None:
        """Refuses also what the exponential decay refuses."""
        super().check()
        self.after()

    def after(self) -> ExponentialDecaySchedule:
        """Returns the decay from the peak value."""
        return exponential_decay(
            self.peak_value,
            self.transition_steps,
            self.decay_rate,
            self.transition_begin,
            self.staircase,
            self.end_value,
        )

    def extremes(self) -> tuple[float, float] | None:
        """Returns the bounds of the line and the decay together."""
        line, decay = extent(self.init_value, self.peak_value), self.after().extremes()
        if line is None or decay is None:
            return None
        return min(line[0], decay[0]), max(line[1], decay[1])


@answering
def warmup_constant_schedule(
    init_value: ArrayLike, peak_value: ArrayLike, warmup_steps: Steps
) -> WarmupConstantSchedule:
    """Returns a line from `init_value` to `peak_value`, which then stays.

    Args:
        init_value: the value at count 0.
        peak_value: the value from count `warmup_steps` on.
        warmup_steps: how long the line is, steps or a duration; with 0 steps the value is
            `peak_value` from the start.

    Raises:
        ArgumentError: a value is not finite, or `warmup_steps` is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> warmup = warmup_constant_schedule(0.0, 0.1, warmup_steps=4)
        >>> [round(float(warmup(count)), 3) for count in (0, 1, 4, 99)]
        [0.0, 0.025, 0.1, 0.1]
    """
    return WarmupConstantSchedule(init_value, peak_value, warmup_steps)


@answering
def warmup_cosine_decay_schedule(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: Steps,
    decay_steps: Steps,
    end_value: ArrayLike = 0.0,
    exponent: ArrayLike = 1.0,
) -> WarmupCosineDecaySchedule:
    """Returns a line from `init_value` to `peak_value`, then a cosine down to `end_value`.

    Args:
        init_value: the value at count 0.
        peak_value: the value at count `warmup_steps`.
        warmup_steps: how long the line is, steps or a duration; 0 starts at the peak.
        decay_steps: the length of the whole schedule, *warm-up included*, steps or a duration;
            `"100%"` ends with the run.
        end_value: the value from count `decay_steps` on.
        exponent: exponent of the cosine, at least 0.

    Raises:
        ArgumentError: a value is not finite, `decay_steps` is not more than `warmup_steps`, or
            the peak is 0 and the end is not.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> from flaxtrain.durations import Horizon
        >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, "10%", decay_steps="100%")
        >>> ready = schedule.resolve(Horizon(batches=20))
        >>> ready.warmup_steps, ready.decay_steps
        (2, 20)
        >>> [round(float(ready(count)), 2) for count in (0, 1, 2, 11, 20)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return WarmupCosineDecaySchedule(
        init_value, peak_value, warmup_steps, decay_steps, end_value, exponent
    )


@answering
def warmup_exponential_decay_schedule(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: Steps,
    transition_steps: Steps,
    decay_rate: ArrayLike,
    transition_begin: Steps = 0,
    staircase: bool = False,
    end_value: ArrayLike | None = None,
) -> WarmupExponentialDecaySchedule:
    """Returns a line from `init_value` to `peak_value`, then an exponential decay.

    Args:
        init_value: the value at count 0.
        peak_value: the value at count `warmup_steps`.
        warmup_steps: how long the line is, steps or a duration; 0 starts at the peak.
        transition_steps: the steps in which the decay multiplies the value by `decay_rate`
            once, *without the warm-up*, steps or a duration.
        decay_rate: the factor, at least 0; see `exponential_decay` for 0.
        transition_begin: how long after the warm-up the decay begins, steps or a duration.
        staircase: change only at every `transition_steps`-th step.
        end_value: a limit: the lowest value where `decay_rate` is below 1, else the highest.

    Raises:
        ArgumentError: a value is not finite, `decay_rate` or a number of steps is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> schedule = warmup_exponential_decay_schedule(0.0, 1.0, 2, 10, decay_rate=0.5)
        >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 12, 22)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    return WarmupExponentialDecaySchedule(
        init_value,
        peak_value,
        warmup_steps,
        transition_steps,
        decay_rate,
        transition_begin,
        staircase,
        end_value,
    )
