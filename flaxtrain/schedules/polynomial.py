"""From one value to another along a power of the time that is left; linear is the first power.

With T transition steps that begin at step t0:
    f(count) = (init - end) (1 - t / T)^power + end,    t = min(max(count - t0, 0), T)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flaxtrain.answering import answering
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import (
    Field,
    Steps,
    check_steps,
    check_value,
    extent,
    is_known,
    remaining,
)
from flaxtrain.typing import ArrayLike

__all__ = ["PolynomialSchedule", "linear_schedule", "polynomial_schedule"]


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialSchedule(Schedule):
    """A polynomial transition; made by `polynomial_schedule` and `linear_schedule`."""

    kind: ClassVar[str] = "polynomial_schedule"
    durations: ClassVar[tuple[str, ...]] = ("transition_steps", "transition_begin")

    init_value: Field
    end_value: Field
    power: Field
    transition_steps: Field
    transition_begin: Field = 0

    def check(self) -> None:
        """Refuses values that are not finite, and a negative power or number of steps."""
        check_value("init_value", self.init_value, where=self.kind)
        check_value("end_value", self.end_value, where=self.kind)
        check_value("power", self.power, minimum=0.0, where=self.kind)
        check_steps("transition_steps", self.transition_steps, where=self.kind)
        check_steps("transition_begin", self.transition_begin, where=self.kind)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`; with no transition steps, always the initial value."""
        if self._never_starts():
            return self.init_value
        left = remaining(count, self.transition_steps, self.transition_begin)
        return (self.init_value - self.end_value) * left**self.power + self.end_value

    def extremes(self) -> tuple[float, float] | None:
        """Returns the initial and the final value, lowest first."""
        return extent(
            self.init_value, self.init_value if self._never_starts() else self.end_value
        )

    def _never_starts(self) -> bool:
        return is_known(self.transition_steps) and bool(self.transition_steps == 0)


@answering
def polynomial_schedule(
    init_value: ArrayLike,
    end_value: ArrayLike,
    power: ArrayLike,
    transition_steps: Steps,
    transition_begin: Steps = 0,
) -> PolynomialSchedule:
    """Returns a transition from `init_value` to `end_value` along a power of the time left.

    `f(count) = (init_value - end_value) (1 - t / transition_steps)^power + end_value`, where
    `t` is `count - transition_begin` limited to `[0, transition_steps]`.

    Args:
        init_value: the value until the transition begins.
        end_value: the value once it is over.
        power: exponent, at least 0; 1 is linear.
        transition_steps: how long the transition lasts, steps or a duration. With 0 steps there
            is no transition: the value stays `init_value`.
        transition_begin: the step at which it begins, steps or a duration.

    Raises:
        ArgumentError: a value is not finite, `power` or a number of steps is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> decay = polynomial_schedule(1.0, 0.0, power=2, transition_steps=10)
        >>> [float(decay(count)) for count in (0, 5, 10, 99)]
        [1.0, 0.25, 0.0, 0.0]
    """
    return PolynomialSchedule(init_value, end_value, power, transition_steps, transition_begin)


@answering
def linear_schedule(
    init_value: ArrayLike,
    end_value: ArrayLike,
    transition_steps: Steps,
    transition_begin: Steps = 0,
) -> PolynomialSchedule:
    """Returns a straight line from `init_value` to `end_value`: a polynomial of power 1.

    Args:
        init_value: the value until the transition begins.
        end_value: the value once it is over.
        transition_steps: how long the transition lasts, steps or a duration. With 0 steps there
            is no transition: the value stays `init_value`.
        transition_begin: the step at which it begins, steps or a duration.

    Raises:
        ArgumentError: a value is not finite, or a number of steps is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> warmup = linear_schedule(0.0, 1.0, transition_steps=4, transition_begin=1)
        >>> [float(warmup(count)) for count in (0, 1, 2, 5, 6)]
        [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    return PolynomialSchedule(init_value, end_value, 1, transition_steps, transition_begin)
