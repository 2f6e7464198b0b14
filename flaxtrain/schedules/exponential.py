"""Exponential decay, continuous or in stairs.

With T transition steps that begin at step t0 and a decay rate r:
    f(count) = init r^(t / T),    t = max(count - t0, 0)
In stairs, t / T is rounded down. An end value is a lower limit for r < 1, else an upper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering
from flaxtrain.checks import check_flag
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import (
    Field,
    Steps,
    check_steps,
    check_value,
    elapsed,
    extent,
    is_array,
    is_known,
    whole_periods,
)
from flaxtrain.typing import ArrayLike

__all__ = ["ExponentialDecaySchedule", "exponential_decay"]


@dataclass(frozen=True, eq=False, repr=False)
class ExponentialDecaySchedule(Schedule):
    """A geometric sequence; made by `exponential_decay`."""

    kind: ClassVar[str] = "exponential_decay"
    durations: ClassVar[tuple[str, ...]] = ("transition_steps", "transition_begin")

    init_value: Field
    transition_steps: Field
    decay_rate: Field
    transition_begin: Field = 0
    staircase: bool = False
    end_value: Field = None

    def check(self) -> None:
        """Refuses values that are not finite, and a negative rate or number of steps."""
        check_value("init_value", self.init_value, where=self.kind)
        check_steps("transition_steps", self.transition_steps, where=self.kind)
        check_value("decay_rate", self.decay_rate, minimum=0.0, where=self.kind)
        check_steps("transition_begin", self.transition_begin, where=self.kind)
        check_flag("staircase", self.staircase, where=self.kind)
        if self.end_value is not None:
            check_value("end_value", self.end_value, where=self.kind)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`; without steps or with rate 0, the initial value."""
        if self._never_starts():
            return self.init_value
        if self.staircase:
            periods = whole_periods(count, self.transition_steps, self.transition_begin)
        else:
            t = elapsed(count, np.inf, self.transition_begin)
            periods = t / (1.0 * self.transition_steps)
        decayed = self.init_value * self.decay_rate**periods
        if self.end_value is None:
            return decayed
        if is_known(self.decay_rate) and not is_array(self.decay_rate):
            limit = jnp.maximum if self.decay_rate < 1.0 else jnp.minimum
            return limit(decayed, self.end_value)
        above, below = (
            jnp.maximum(decayed, self.end_value),
            jnp.minimum(decayed, self.end_value),
        )
        return jnp.where(self.decay_rate < 1.0, above, below)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the initial value and the limit, lowest first; None if it grows for ever."""
        start = extent(self.init_value)
        if start is None or self._never_starts():
            return start
        rate, end = extent(self.decay_rate), extent(self._limit())
        if rate is None or end is None:
            return None
        if rate[1] < 1.0:  # towards 0, but not below the end value
            return max(min(start[0], 0.0), end[0]), max(start[1], 0.0, end[1])
        if rate[0] == rate[1] == 1.0:
            return min(start[0], end[0]), min(start[1], end[1])
        bounded = self.end_value is not None and rate[0] >= 1.0 and start[0] >= 0.0
        return (min(start[0], end[0]), end[1]) if bounded else None

    def _limit(self) -> Field:
        """Returns the end value; without one, a number that limits nothing."""
        if self.end_value is not None:
            return self.end_value
        rate = extent(self.decay_rate)
        return -np.inf if rate is not None and rate[1] < 1.0 else np.inf

    def _never_starts(self) -> bool:
        no_steps = is_known(self.transition_steps) and bool(self.transition_steps == 0)
        no_rate = is_known(self.decay_rate) and not is_array(self.decay_rate)
        return no_steps or (no_rate and bool(self.decay_rate == 0))


@answering
def exponential_decay(
    init_value: ArrayLike,
    transition_steps: Steps,
    decay_rate: ArrayLike,
    transition_begin: Steps = 0,
    staircase: bool = False,
    end_value: ArrayLike | None = None,
) -> ExponentialDecaySchedule:
    """Returns a value that is multiplied by `decay_rate` every `transition_steps` steps.

    `f(count) = init_value decay_rate^(t / transition_steps)`, where `t` is
    `count - transition_begin`, at least 0.

    Args:
        init_value: the value until the decay begins.
        transition_steps: the steps in which the value is multiplied by `decay_rate` once,
            steps or a duration. With 0 steps the value stays `init_value`.
        decay_rate: the factor, at least 0. With 0, as without steps, the value stays
            `init_value`.
        transition_begin: the step at which the decay begins, steps or a duration.
        staircase: change only at every `transition_steps`-th step.
        end_value: a limit: the lowest value where `decay_rate` is below 1, else the highest.

    Raises:
        ArgumentError: a value is not finite, `decay_rate` or a number of steps is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> decay = exponential_decay(1.0, transition_steps=2, decay_rate=0.25, end_value=0.1)
        >>> [round(float(decay(count)), 3) for count in (0, 1, 2, 99)]
        [1.0, 0.5, 0.25, 0.1]
    """
    return ExponentialDecaySchedule(
        init_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
