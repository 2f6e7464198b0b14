"""Half a period of a cosine.

Loshchilov & Hutter 2016, arXiv:1608.03983 (SGDR), equation 5, without the restarts:
    f(count) = init ((1 - alpha) c^exponent + alpha),    c = (1 + cos(pi t / T)) / 2
with t = min(count, T); T is `decay_steps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import Field, Steps, check_steps, check_value, elapsed, extent
from flaxtrain.typing import ArrayLike

__all__ = ["CosineDecaySchedule", "cosine_decay_schedule"]


@dataclass(frozen=True, eq=False, repr=False)
class CosineDecaySchedule(Schedule):
    """Half a period of a cosine; made by `cosine_decay_schedule`."""

    kind: ClassVar[str] = "cosine_decay_schedule"
    durations: ClassVar[tuple[str, ...]] = ("decay_steps",)

    init_value: Field
    decay_steps: Field
    alpha: Field = 0.0
    exponent: Field = 1.0

    def check(self) -> None:
        """Refuses values that are not finite, a negative exponent, and decay steps below 1."""
        check_value("init_value", self.init_value, where=self.kind)
        check_steps("decay_steps", self.decay_steps, positive=True, where=self.kind)
        check_value("alpha", self.alpha, where=self.kind)
        check_value("exponent", self.exponent, minimum=0.0, where=self.kind)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        t = elapsed(count, self.decay_steps)
        c = 0.5 * (1.0 + jnp.cos(math.pi * t / (1.0 * self.decay_steps)))
        return self.init_value * ((1.0 - self.alpha) * c**self.exponent + self.alpha)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the initial value and `alpha` times it, lowest first."""
        return extent(self.init_value, self.init_value * self.alpha)


@answering
def cosine_decay_schedule(
    init_value: ArrayLike, decay_steps: Steps, alpha: ArrayLike = 0.0, exponent: ArrayLike = 1.0
) -> CosineDecaySchedule:
    """Returns a decay along half a period of a cosine, as in SGDR without restarts.

    `f(count) = init_value ((1 - alpha) c^exponent + alpha)` with
    `c = (1 + cos(pi t / decay_steps)) / 2` and `t = min(count, decay_steps)`.

    Args:
        init_value: the value at count 0.
        decay_steps: how long the decay lasts, steps (more than 0) or a duration.
        alpha: the final value as a *fraction of* `init_value`.
        exponent: exponent of the cosine, at least 0.

    Raises:
        ArgumentError: a value is not finite, `exponent` is negative, or `decay_steps` is not
            positive.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> decay = cosine_decay_schedule(1.0, decay_steps=10, alpha=0.1)
        >>> [round(float(decay(count)), 3) for count in (0, 5, 10, 11)]
        [1.0, 0.55, 0.1, 0.1]
    """
    return CosineDecaySchedule(init_value, decay_steps, alpha, exponent)
