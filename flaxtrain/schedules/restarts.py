"""Cosines one after the other: warm restarts.

Loshchilov & Hutter 2016, arXiv:1608.03983 (SGDR). Equation 5 within cycle i, which begins at
step B_i and is T_i steps long; T_(i+1) = T_mult T_i:
    f(count) = peak_i ((1 - alpha) (1 + cos(pi (count - B_i) / T_i)) / 2 + alpha)
`sgdr_schedule` is told every cycle; `cosine_restarts_schedule` continues for ever, with
peak_i = init peak_decay^i. Restarts are at whole steps: B_i is rounded to the nearest one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering
from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.compose import JoinedSchedule, join_schedules
from flaxtrain.schedules.fields import (
    Field,
    Steps,
    check_steps,
    check_value,
    extent,
    is_known,
    within,
)
from flaxtrain.schedules.warmup import WarmupCosineDecaySchedule, warmup_cosine_decay_schedule
from flaxtrain.typing import ArrayLike

__all__ = [
    "CosineRestartsSchedule",
    "SgdrSchedule",
    "cosine_restarts_schedule",
    "sgdr_schedule",
]

_LARGEST_COUNT = 2**31  # of an int32, the type of the counts that compiled steps keep
_MOST_CYCLES = 20_000


@dataclass(frozen=True, eq=False, repr=False)
class SgdrSchedule(Schedule):
    """Given cycles, each with its warm-up; made by `sgdr_schedule`."""

    kind: ClassVar[str] = "sgdr_schedule"

    cosine_kwargs: tuple[WarmupCosineDecaySchedule, ...]

    def check(self) -> None:
        """Refuses an empty list, and entries that are no cycles."""
        if not self.cosine_kwargs:
            raise ArgumentError("no cycles", where=self.kind, fix="pass at least one cycle")
        for position, cycle in enumerate(self.cosine_kwargs):
            if not isinstance(cycle, WarmupCosineDecaySchedule):
                raise ArgumentTypeError(
                    f"cosine_kwargs[{position}]={cycle!r} is not a mapping of arguments",
                    where=self.kind,
                    fix="pass the arguments of warmup_cosine_decay_schedule as a dict",
                )

    def joined(self) -> JoinedSchedule:
        """Returns the composition that this schedule is: each cycle for its `decay_steps`."""
        ends = accumulate(cycle.decay_steps for cycle in self.cosine_kwargs)
        return join_schedules(self.cosine_kwargs, list(ends)[:-1])

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`; after the last cycle, its final value."""
        return self.joined().at(count)

    def extremes(self) -> tuple[float, float] | None:
        """Returns the bounds of all cycles together."""
        bounds = [cycle.extremes() for cycle in self.cosine_kwargs]
        known = [bound for bound in bounds if bound is not None]
        return extent(*map(np.array, known)) if len(known) == len(bounds) else None


@dataclass(frozen=True, eq=False, repr=False)
class CosineRestartsSchedule(Schedule):
    """Cycles without end; made by `cosine_restarts_schedule`."""

    kind: ClassVar[str] = "cosine_restarts_schedule"
    durations: ClassVar[tuple[str, ...]] = ("decay_steps",)

    init_value: Field
    decay_steps: Field
    alpha: Field = 0.0
    t_mult: Field = 1.0
    peak_decay: Field = 1.0

    def check(self) -> None:
        """Refuses values out of range, and cycles too many to list."""
        check_value("init_value", self.init_value, where=self.kind)
        check_steps("decay_steps", self.decay_steps, positive=True, where=self.kind)
        check_value("alpha", self.alpha, where=self.kind)
        check_number("t_mult", self.t_mult, minimum=1.0, where=self.kind)
        check_number(
            "peak_decay",
            self.peak_decay,
            minimum=0.0,
            maximum=1.0,
            exclude=(0.0,),
            where=self.kind,
        )
        if not (is_concrete(self.decay_steps) and is_concrete(self.t_mult)):
            raise ArgumentTypeError(
                "the length of a cycle is not known while tracing",
                where=self.kind,
                fix="pass decay_steps and t_mult as numbers; other values may vary",
            )
        if not isinstance(self.decay_steps, str):
            if self.decay_steps != int(self.decay_steps):
                raise ArgumentError(
                    f"decay_steps={self.decay_steps} is not a whole number",
                    where=self.kind,
                    fix="pass a whole number of steps: restarts are at whole steps",
                )
            if self._cycles() > _MOST_CYCLES:
                raise ArgumentError(
                    f"t_mult={self.t_mult} is so near to 1 that there are too many cycles",
                    where=self.kind,
                    fix="pass t_mult=1, or a larger one",
                )

    def _cycles(self) -> float:
        """Returns how many cycles a 32-bit count can meet, where their length grows."""
        if self.t_mult == 1:
            return 0.0
        growth = _LARGEST_COUNT * (self.t_mult - 1) / self.decay_steps
        return math.log1p(growth) / math.log(self.t_mult)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`."""
        cycle, t, length = self._position(count)
        c = 0.5 * (1.0 + jnp.cos(math.pi * t / length))
        peak = self.init_value
        if not (is_known(self.peak_decay) and self.peak_decay == 1):
            peak = peak * self.peak_decay**cycle
        return peak * ((1.0 - self.alpha) * c + self.alpha)

    def _position(self, count: ArrayLike) -> tuple[Any, Any, Any]:
        """Returns the cycle, the steps since it began, and its length: weakly typed floats.

        All of it is found in integers, so that every restart is at its step exactly.
        """
        first = int(self.decay_steps)
        if isinstance(count, int):
            count = max(count, 0)
            if self.t_mult == 1:
                i, t, length = count // first, count % first, first
            else:
                starts = _starts(first, self.t_mult, max(count, _LARGEST_COUNT))
                i = bisect_right(starts, count) - 1
                t, length = count - starts[i], starts[i + 1] - starts[i]
            return jnp.asarray(1.0 * i), jnp.asarray(1.0 * t), 1.0 * length
        count = jnp.maximum(count, 0)
        if self.t_mult == 1:
            length = within(first, count)
            return 1.0 * (count // length), 1.0 * (count % length), 1.0 * first
        starts = _starts(first, self.t_mult, _LARGEST_COUNT)
        begins = np.array([start for start in starts[:-1] if start == within(start, count)])
        i = jnp.searchsorted(jnp.asarray(begins, count.dtype), count, side="right") - 1
        # Lengths in two halves: the last one may be too large for an int32.
        lengths = np.diff(starts)[: len(begins)]
        high, low = (jnp.asarray(half, jnp.int32)[i] for half in np.divmod(lengths, 2**16))
        length = 65536.0 * high + 1.0 * low
        return 1.0 * i, 1.0 * (count - jnp.asarray(begins, count.dtype)[i]), length

    def extremes(self) -> tuple[float, float] | None:
        """Returns the first peak and the value at the first restart, or 0 if peaks decay."""
        bounds = extent(self.init_value, self.init_value * self.alpha)
        constant = is_known(self.peak_decay) and self.peak_decay == 1
        if constant or bounds is None:
            return bounds
        return min(bounds[0], 0.0), max(bounds[1], 0.0)


@lru_cache(maxsize=64)
def _starts(first: int, t_mult: float, count: int) -> tuple[int, ...]:
    """Returns the first steps of all cycles up to the one after the one that has `count`."""
    found, begin, length = [0], 0.0, float(first)
    while found[-1] <= count:
        begin, length = begin + length, length * t_mult
        found.append(round(begin))
    return tuple(found)


@answering
def sgdr_schedule(
    cosine_kwargs: Iterable[Mapping[str, Any] | WarmupCosineDecaySchedule],
) -> SgdrSchedule:
    """Returns cycles of warm-up and cosine, one after the other.

    Args:
        cosine_kwargs: for each cycle the arguments of `warmup_cosine_decay_schedule` as a
            mapping, or such a schedule. A cycle lasts for its `decay_steps`, which may be a
            duration.

    Raises:
        ArgumentError: there is no cycle, or an argument is out of range.
        ArgumentTypeError: an argument is missing, not known, or of the wrong type.

    Example:
        >>> cycle = {"init_value": 0.0, "warmup_steps": 2, "decay_steps": 10}
        >>> cycles = sgdr_schedule([cycle | {"peak_value": peak} for peak in (1.0, 0.5)])
        >>> [round(float(cycles(count)), 3) for count in (0, 1, 2, 6, 10, 12, 20)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 0.0]
    """
    return SgdrSchedule(
        tuple(
            warmup_cosine_decay_schedule(**cycle) if isinstance(cycle, Mapping) else cycle
            for cycle in cosine_kwargs
        )
    )


@answering
def cosine_restarts_schedule(
    init_value: ArrayLike,
    decay_steps: Steps,
    alpha: ArrayLike = 0.0,
    *,
    t_mult: float = 1.0,
    peak_decay: ArrayLike = 1.0,
) -> CosineRestartsSchedule:
    """Returns a cosine decay that starts again and again.

    Args:
        init_value: the value at count 0, the first peak.
        decay_steps: how long the first cycle is, a whole number of steps or a duration.
        alpha: the end of each cycle as a *fraction of* its peak.
        t_mult: each cycle is this many times as long as the one before, at least 1.
        peak_decay: each peak is this fraction of the one before, in (0, 1].

    Raises:
        ArgumentError: a value is not finite or out of range, or `t_mult` is so near to 1 that
            more than 20,000 cycles fit into a 32-bit count.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> restarts = cosine_restarts_schedule(1.0, 10, t_mult=2.0, peak_decay=0.5)
        >>> [round(float(restarts(count)), 3) for count in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """
    return CosineRestartsSchedule(init_value, decay_steps, alpha, t_mult, peak_decay)
