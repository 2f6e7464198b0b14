"""Inverse square root of the count, after a warm-up and before a cooldown.

With peak p, warm-up w, timescale s, cooldown c and total length n:
    f(count) = init + (p - init) count / w                        while count < w
             = p sqrt(s / (s + count - w)) min(1, (n - count) / c)    after it
Vaswani et al. 2017, arXiv:1706.03762, section 5.3 ("Noam"): s = w, so that the decay
is p sqrt(w / count). Raffel et al. 2019, arXiv:1910.10683 (T5): the same, and init = p.
Zhai et al. 2021, arXiv:2106.04560 (scaling ViT), section 3.5: s of its own, 10,000 there, and
a cooldown to zero. The count of Noam's formula begins at 1, ours at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering
from flaxtrain.errors import ArgumentError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import (
    Field,
    Steps,
    check_steps,
    check_value,
    elapsed,
    extent,
    is_known,
    remaining,
    within,
)
from flaxtrain.schedules.polynomial import linear_schedule
from flaxtrain.typing import ArrayLike

__all__ = ["InverseSqrtSchedule", "inverse_sqrt_schedule"]


@dataclass(frozen=True, eq=False, repr=False)
class InverseSqrtSchedule(Schedule):
    """A line, then an inverse square root; made by `inverse_sqrt_schedule`."""

    kind: ClassVar[str] = "inverse_sqrt_schedule"
    durations: ClassVar[tuple[str, ...]] = (
        "warmup_steps",
        "timescale",
        "cooldown_steps",
        "total_steps",
    )

    peak_value: Field
    warmup_steps: Field
    timescale: Field = None
    init_value: Field = 0.0
    cooldown_steps: Field = 0
    total_steps: Field = None

    def check(self) -> None:
        """Refuses values and steps out of range, and a cooldown without an end."""
        check_value("peak_value", self.peak_value, where=self.kind)
        check_steps("warmup_steps", self.warmup_steps, where=self.kind)
        if self.timescale is not None:
            check_steps("timescale", self.timescale, positive=True, where=self.kind)
        elif is_known(self.warmup_steps) and self.warmup_steps == 0:
            raise ArgumentError(
                "no timescale: neither timescale nor warmup_steps is above 0",
                where=self.kind,
                fix="pass timescale=, the steps after which the value is peak / sqrt(2)",
            )
        check_value("init_value", self.init_value, where=self.kind)
        check_steps("cooldown_steps", self.cooldown_steps, where=self.kind)
        if self.total_steps is None:
            if not (is_known(self.cooldown_steps) and self.cooldown_steps == 0):
                raise ArgumentError(
                    f"cooldown_steps={self.cooldown_steps!r} without total_steps",
                    where=self.kind,
                    fix='pass the step at which the cooldown reaches zero: total_steps="100%"',
                )
            return
        check_steps("total_steps", self.total_steps, where=self.kind)
        parts = (self.warmup_steps, self.cooldown_steps, self.total_steps)
        if is_known(*parts) and self.warmup_steps + self.cooldown_steps > self.total_steps:
            raise ArgumentError(
                f"warmup_steps={self.warmup_steps} and cooldown_steps={self.cooldown_steps} "
                f"exceed total_steps={self.total_steps}",
                where=self.kind,
                fix="pass the length of the whole schedule, both included, as total_steps",
            )

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        warmup = self.warmup_steps
        scale = 1.0 * (warmup if self.timescale is None else self.timescale)
        line = linear_schedule(self.init_value, self.peak_value, warmup)
        after = self.peak_value * jnp.sqrt(scale / (scale + elapsed(count, np.inf, warmup)))
        if self._cools_down():
            begin = self.total_steps - self.cooldown_steps
            after = after * remaining(count, self.cooldown_steps, begin)
        return jnp.where(count < within(warmup, count), line(count), after)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the lowest and highest of the initial value, the peak and zero."""
        return extent(self.init_value, self.peak_value, 0.0)

    def _cools_down(self) -> bool:
        return not (is_known(self.cooldown_steps) and bool(self.cooldown_steps == 0))


@answering
def inverse_sqrt_schedule(
    peak_value: ArrayLike,
    warmup_steps: Steps,
    timescale: Steps | None = None,
    *,
    init_value: ArrayLike = 0.0,
    cooldown_steps: Steps = 0,
    total_steps: Steps | None = None,
) -> InverseSqrtSchedule:
    """Returns a line up to `peak_value`, then its decay with the inverse square root.

    The Transformer's own schedule is `peak_value=(d_model * warmup_steps) ** -0.5`; T5's is
    `peak_value=init_value=warmup_steps**-0.5`, constant for `warmup_steps`.

    Args:
        peak_value: the value at count `warmup_steps`.
        warmup_steps: how long the line is, steps or a duration; 0 starts at the peak.
        timescale: steps (more than 0) or a duration; that long after the warm-up, the value is
            `peak_value / sqrt(2)`. None: `warmup_steps`.
        init_value: the value at count 0.
        cooldown_steps: how long before the end a factor goes from 1 to 0 along a line, steps or
            a duration; 0 for no cooldown.
        total_steps: the step at which the cooldown reaches zero, steps or a duration.

    Raises:
        ArgumentError: a value is not finite, a duration is negative, there is no timescale, or
            the cooldown has no end or no room.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> noam = inverse_sqrt_schedule(1.0, warmup_steps=4)
        >>> [round(float(noam(count)), 3) for count in (0, 2, 4, 16, 64)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
        >>> vit = inverse_sqrt_schedule(
        ...     1.0, warmup_steps=4, timescale=12, cooldown_steps=10, total_steps=50
        ... )
        >>> [round(float(vit(count)), 3) for count in (4, 40, 45, 50)]
        [1.0, 0.5, 0.238, 0.0]
    """
    return InverseSqrtSchedule(
        peak_value, warmup_steps, timescale, init_value, cooldown_steps, total_steps
    )
