"""How a learning rate goes in the course of a run: where it peaks, from when on it rests.

A schedule isn't asked for its name. Its fields that are durations bound the time in which it
changes, if it ever comes to rest; within that time its values are looked at, a few hundred at
once, and more closely where they change last. So joined schedules and plain functions are
judged by what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import jax
import numpy as np

from flaxtrain.schedules import Schedule
from flaxtrain.typing import ArrayLike

# Nothing here is public: the plan's warnings are made from it.
__all__ = []

Rate: TypeAlias = ArrayLike | Callable[[ArrayLike], ArrayLike]

# A schedule of ours gives all values in one call; a plain function is called for each.
_POINTS, _CALLS = 513, 65
_LARGEST_COUNT = 2**31 - 1  # of an int32, the type of the counts

# Of the peak: what is nearer to the last value than this is at rest. The end of a cosine is so
# flat that its last 0.06 percent would count as rest.
_FLAT = 1e-6


@dataclass(frozen=True)
class Course:
    """How a learning rate goes.

    Attributes:
        first: its value at the first update.
        last: its value at the last update of the run.
        peak: its largest value, in the run or after it.
        peak_at: the number of updates before the first that has this value.
        rests_from: the number of updates in the run after which it no longer changes.
        fades: whether it has come to rest gradually, or at zero: a decay that is over. False
            for jumps to a value, and for warm-ups to one.
        end: the number of updates after which it no longer changes, the time after the run
            included; None if that is never, or not known.
        end_value: its value from `end` on.
    """

    first: float
    last: float
    peak: float
    peak_at: int
    rests_from: int
    fades: bool
    end: int | None
    end_value: float


def course_of(rate: Rate, steps: int) -> Course:
    """Returns how a learning rate goes.

    Args:
        rate: a number, a schedule whose durations are in steps, or a function of the count.
        steps: number of updates in the run, at least 1.

    Example:
        >>> from flaxtrain.schedules import warmup_cosine_decay_schedule
        >>> found = course_of(warmup_cosine_decay_schedule(0.0, 1.0, 10, 100), steps=200)
        >>> found.peak_at, found.rests_from, found.fades
        (10, 100, True)
    """
    curve = _Curve(rate)
    bound = sum(curve.durations)
    run, span = range(steps), range(max(steps, min(bound + 1, _LARGEST_COUNT)))
    peak, peak_at = max(
        (curve.highest(part) for part in (run, span)), key=lambda found: found[0]
    )
    flat = _FLAT * abs(peak)
    rests_from, end = curve.rest(run, flat), curve.rest(span, flat)
    first, last, end_value = curve.values([0, run[-1], span[-1]]).tolist()
    return Course(
        first,
        last,
        peak,
        peak_at,
        rests_from,
        last < peak - flat and (abs(last) <= flat or curve.glides_to(rests_from)),
        end if curve.stays_after(bound, flat) else None,
        end_value,
    )


class _Curve:
    """The values of a learning rate, and where they are what."""

    def __init__(self, rate: Any) -> None:
        self._rate, self._is_ours = rate, isinstance(rate, Schedule)
        self._points = _POINTS if self._is_ours else _CALLS
        self._compiled = jax.jit(rate) if self._is_ours else None
        self.durations = _durations(rate) if self._is_ours else []

    def values(self, counts: Any) -> np.ndarray:
        """Returns the values at some counts, at most as many as are looked at at once."""
        counts = np.asarray(counts, np.int32)
        if self._compiled is not None:
            # Always the same shape, so that it is compiled once.
            padded = np.pad(counts, (0, self._points - len(counts)))
            found = np.asarray(self._compiled(padded), np.float64)
            return np.broadcast_to(found, padded.shape)[: len(counts)]
        if not callable(self._rate):
            return np.full(counts.shape, float(self._rate))
        return np.array([float(np.asarray(self._rate(int(count)))) for count in counts])

    def spread(self, span: range) -> np.ndarray:
        """Returns counts spread over a span, its ends included."""
        return np.unique(np.linspace(span[0], span[-1], self._points).astype(np.int32))

    def highest(self, span: range) -> tuple[float, int]:
        """Returns the largest value in a span, and the first count at which it is reached."""
        counts = self.spread(span)
        at = int(np.argmax(self.values(counts)))
        near = self.spread(
            range(counts[max(at - 1, 0)], counts[min(at + 1, len(counts) - 1)] + 1)
        )
        values = self.values(near)
        return float(values.max()), self._rounded(int(near[np.argmax(values)]))

    def rest(self, span: range, flat: float) -> int:
        """Returns the first count of a span from which on the value is that at its end."""
        low, high = span[0], span[-1]
        final = self.values([high])[0]
        while low < high:
            counts = self.spread(range(low, high + 1))
            moving = np.abs(self.values(counts) - final) > flat
            if not moving.any():
                return self._rounded(low)
            last = int(np.flatnonzero(moving)[-1])
            low, high = int(counts[last]), int(counts[last + 1])
            if high - low <= 1:
                return self._rounded(high)
        return low

    def _rounded(self, count: int) -> int:
        """Returns the duration next to a count, if it is within a percent: cosines are flat."""
        marks = (*self.durations, sum(self.durations))
        near = [mark for mark in marks if abs(mark - count) <= 0.01 * count]
        return min(near, key=lambda mark: abs(mark - count), default=count)

    def glides_to(self, count: int) -> bool:
        """Whether the value changed at nearly every count before this one, without jumps."""
        before = np.unique(np.linspace(count // 2, count, 17).astype(np.int32))
        return count > 4 and len(np.unique(self.values(before))) > len(before) // 2

    def stays_after(self, count: int, flat: float) -> bool:
        """Whether the value is the same at some counts after all durations are over."""
        if not self._is_ours:
            return False
        later = (count, count + 1, count + count // 3 + 1, 2 * count + 3, 5 * count + 7)
        values = self.values([c for c in later if c <= _LARGEST_COUNT] or [_LARGEST_COUNT])
        return bool(np.ptp(values) <= flat)


def _durations(schedule: Schedule) -> list[int]:
    """Returns all durations, nested ones too. Who comes to rest has done so by their sum."""
    found: list[int] = []
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        for item in value if isinstance(value, (tuple, Mapping)) else (value,):
            if isinstance(item, Schedule):
                found += _durations(item)
            elif field.name in schedule.durations and item is not None:
                found.append(math.ceil(item))
    return found
