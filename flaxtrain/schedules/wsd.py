"""Warm up, stay, cool down: the schedule that need not know its end while it stays.

Hu et al. 2024, arXiv:2404.06395 (MiniCPM, WSD), and Haegele et al. 2024, arXiv:2405.18392,
who compare tails and find 1 - sqrt best. With peak p, end e, and x the part of the tail that is
over:
    linear:  e + (p - e) (1 - x)
    cosine:  e + (p - e) (1 + cos(pi x)) / 2
    1-sqrt:  e + (p - e) (1 - sqrt(x))
A run that stays at the peak can be continued, or cooled down from any checkpoint, by joining
`cooldown_schedule` to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.checks import check_choice
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.compose import JoinedSchedule, join_schedules
from flaxtrain.schedules.constant import constant_schedule
from flaxtrain.schedules.fields import Field, Steps, check_steps, check_value, extent, remaining
from flaxtrain.schedules.polynomial import linear_schedule
from flaxtrain.typing import ArrayLike

__all__ = ["CooldownSchedule", "WsdSchedule", "cooldown_schedule", "wsd_schedule"]

_TAILS = ("linear", "cosine", "1-sqrt")


@dataclass(frozen=True, eq=False, repr=False)
class CooldownSchedule(Schedule):
    """A tail; made by `cooldown_schedule`."""

    kind: ClassVar[str] = "cooldown_schedule"
    durations: ClassVar[tuple[str, ...]] = ("decay_steps",)

    init_value: Field
    decay_steps: Field
    tail: str = "linear"
    end_value: Field = 0.0

    def check(self) -> None:
        """Refuses values that are not finite, an unknown tail, and decay steps below 1."""
        check_value("init_value", self.init_value, where=self.kind)
        check_steps("decay_steps", self.decay_steps, positive=True, where=self.kind)
        check_choice("tail", self.tail, _TAILS, where=self.kind)
        check_value("end_value", self.end_value, where=self.kind)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        left = remaining(count, self.decay_steps)
        if self.tail == "cosine":
            left = 0.5 * (1.0 - jnp.cos(math.pi * left))
        elif self.tail == "1-sqrt":
            left = 1.0 - jnp.sqrt(1.0 - left)
        return self.end_value + (self.init_value - self.end_value) * left

    def extremes(self) -> tuple[float, float] | None:
        """Returns the initial and the final value, lowest first."""
        return extent(self.init_value, self.end_value)


@dataclass(frozen=True, eq=False, repr=False)
class WsdSchedule(Schedule):
    """Warm-up, plateau and tail; made by `wsd_schedule`."""

    kind: ClassVar[str] = "wsd_schedule"
    durations: ClassVar[tuple[str, ...]] = ("warmup_steps", "stable_steps", "decay_steps")

    peak_value: Field
    warmup_steps: Field
    stable_steps: Field
    decay_steps: Field
    tail: str = "linear"
    init_value: Field = 0.0
    end_value: Field = 0.0

    def check(self) -> None:
        """Refuses values that are not finite, an unknown tail, and steps out of range."""
        check_value("peak_value", self.peak_value, where=self.kind)
        check_steps("warmup_steps", self.warmup_steps, where=self.kind)
        check_steps("stable_steps", self.stable_steps, where=self.kind)
        check_steps("decay_steps", self.decay_steps, positive=True, where=self.kind)
        check_choice("tail", self.tail, _TAILS, where=self.kind)
        check_value("init_value", self.init_value, where=self.kind)
        check_value("end_value", self.end_value, where=self.kind)

    def joined(self) -> JoinedSchedule:
        """Returns the composition that this schedule is."""
        warmup, stable = self.warmup_steps, self.stable_steps
        return join_schedules(
            [
                linear_schedule(self.init_value, self.peak_value, warmup),
                constant_schedule(self.peak_value),
                cooldown_schedule(self.peak_value, self.decay_steps, self.tail, self.end_value),
            ],
            [warmup, warmup + stable],
        )

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        return self.joined().at(count)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the lowest and highest of the initial, peak and final value."""
        return extent(self.init_value, self.peak_value, self.end_value)


@answering
def cooldown_schedule(
    init_value: ArrayLike,
    decay_steps: Steps,
    tail: str = "linear",
    end_value: ArrayLike = 0.0,
) -> CooldownSchedule:
    """Returns the last part of a run, from `init_value` to `end_value`.

    Args:
        init_value: the value at count 0.
        decay_steps: how long it is, steps (more than 0) or a duration.
        tail: its shape, `"linear"`, `"cosine"` or `"1-sqrt"`, which falls fast at first.
        end_value: the value from count `decay_steps` on.

    Raises:
        UnknownNameError: there is no such tail.
        ArgumentError: a value is not finite, or `decay_steps` is not positive.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> tails = ("linear", "cosine", "1-sqrt")
        >>> [round(float(cooldown_schedule(1.0, 16, tail)(4)), 3) for tail in tails]
        [0.75, 0.854, 0.5]
    """
    return CooldownSchedule(init_value, decay_steps, tail, end_value)


@answering
def wsd_schedule(
    peak_value: ArrayLike,
    warmup_steps: Steps,
    stable_steps: Steps,
    decay_steps: Steps,
    tail: str = "linear",
    *,
    init_value: ArrayLike = 0.0,
    end_value: ArrayLike = 0.0,
) -> WsdSchedule:
    """Returns a line up to `peak_value`, a plateau, and a tail: warmup, stable, decay.

    Args:
        peak_value: the value of the plateau.
        warmup_steps: how long the line is, steps or a duration; 0 starts at the peak.
        stable_steps: how long the plateau is, steps or a duration.
        decay_steps: how long the tail is, steps (more than 0) or a duration. The three
            durations follow one another: `"5%"`, `"75%"`, `"20%"` make a whole run.
        tail: the shape of the tail, `"linear"`, `"cosine"` or `"1-sqrt"`.
        init_value: the value at count 0.
        end_value: the value after the tail.

    Raises:
        UnknownNameError: there is no such tail.
        ArgumentError: a value is not finite, a duration is negative, or `decay_steps` is 0.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> wsd = wsd_schedule(1.0, warmup_steps=2, stable_steps=5, decay_steps=4)
        >>> [round(float(wsd(count)), 2) for count in (0, 1, 2, 7, 8, 11)]
        [0.0, 0.5, 1.0, 1.0, 0.75, 0.0]
    """
    return WsdSchedule(
        peak_value, warmup_steps, stable_steps, decay_steps, tail, init_value, end_value
    )
