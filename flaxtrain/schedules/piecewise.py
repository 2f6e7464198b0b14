"""Values that are multiplied at given steps: in jumps, or with a line or a cosine between them.

With boundaries b_1 < ... < b_n and factors s_1, ..., s_n, the knots are
    (0, v_0), (b_1, v_1), ..., (b_n, v_n),    v_0 = init,    v_i = s_i v_(i-1)
The constant schedule has the value of the last knot reached; the interpolating one goes from
knot to knot, with x the part of the interval that is over, along
    linear:  v_(i-1) + (v_i - v_(i-1)) x
    cosine:  v_i + (v_(i-1) - v_i) (1 + cos(pi x)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.checks import check_choice, is_concrete
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import (
    Field,
    check_steps,
    check_value,
    elapsed,
    extent,
    table,
    within,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import ArrayLike

__all__ = [
    "PiecewiseConstantSchedule",
    "PiecewiseInterpolateSchedule",
    "PiecewiseSchedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
]


class PiecewiseSchedule(Schedule):
    """A value and a table of factors; the subclass says what happens between the steps."""

    durations: ClassVar[tuple[str, ...]] = ("boundaries_and_scales",)

    # Fields of the subclasses, which have them in different places.
    init_value: Field
    boundaries_and_scales: Field

    def check(self) -> None:
        """Refuses values that are not finite, negative factors, and negative boundaries."""
        check_value("init_value", self.init_value, where=self.kind)
        scales = self.boundaries_and_scales
        if scales is None:
            return
        if not isinstance(scales, Mapping):
            raise ArgumentTypeError(
                f"boundaries_and_scales={scales!r} is {kind_of(scales)}, not a mapping",
                where=self.kind,
                fix="pass {step: factor, ...}",
            )
        for boundary in scales:
            check_steps("boundaries_and_scales", boundary, where=self.kind)
        for boundary, scale in scales.items():
            name = f"boundaries_and_scales[{boundary!r}]"
            check_value(name, scale, minimum=0.0, where=self.kind)

    def knots(self) -> list[tuple[Any, Any]]:
        """Returns `(step, value)` of every knot, by step; the first is at step 0."""
        found: list[tuple[Any, Any]] = [(0, self.init_value)]
        scales = self.boundaries_and_scales or {}
        for boundary in sorted(scales):
            found.append((boundary, found[-1][1] * scales[boundary]))
        return found

    def extremes(self) -> tuple[float, float] | None:
        """Returns the lowest and the highest value of a knot.

        None while the order of the boundaries is unknown, unless all factors lead one way.
        """
        if self.is_resolved:
            return extent(*(value for _, value in self.knots()))
        scales = tuple(self.boundaries_and_scales.values())
        factors = extent(*scales)
        if factors is None or factors[0] < 1.0 < factors[1] or not is_concrete(self.init_value):
            return None
        return extent(self.init_value, self.init_value * math.prod(scales))


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseConstantSchedule(PiecewiseSchedule):
    """Jumps; made by `piecewise_constant_schedule`."""

    kind: ClassVar[str] = "piecewise_constant_schedule"

    init_value: Field
    boundaries_and_scales: Field = None

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value of the last knot that is not after `count`."""
        (_, result), *later = self.knots()
        for boundary, value in later:
            result = jnp.where(count < within(boundary, count), result, value)
        return result


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseInterpolateSchedule(PiecewiseSchedule):
    """Lines or cosines; made by `piecewise_interpolate_schedule`."""

    kind: ClassVar[str] = "piecewise_interpolate_schedule"

    interpolate_type: str
    init_value: Field
    boundaries_and_scales: Field = None

    def check(self) -> None:
        """Refuses also an interpolation that is not known."""
        kinds = ("linear", "cosine")
        check_choice("interpolate_type", self.interpolate_type, kinds, where=self.kind)
        super().check()

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value between the knots on both sides of `count`, or of the last one."""
        knots = self.knots()
        result = self.init_value
        for (begin, start), (end, stop) in pairwise(knots):
            if begin < end:
                x = elapsed(count, end - begin, begin) / (1.0 * (end - begin))
                between = self._between(start, stop, x)
                result = jnp.where(count < within(begin, count), result, between)
            # The end itself: a formula's rounding is large next to a small last value.
            result = jnp.where(count < within(end, count), result, stop)
        return result

    def _between(self, start: Any, stop: Any, x: Any) -> Any:
        if self.interpolate_type == "linear":
            return start + (stop - start) * x
        return stop + (start - stop) / 2.0 * (1.0 + jnp.cos(math.pi * x))


@answering
def piecewise_constant_schedule(
    init_value: ArrayLike,
    boundaries_and_scales: Mapping[Any, ArrayLike] | Sequence[Sequence[Any]] | None = None,
) -> PiecewiseConstantSchedule:
    """Returns a value that is multiplied by a factor at each of the given steps.

    Args:
        init_value: the value until the first of the steps.
        boundaries_and_scales: `{step: factor}`, or a list of such pairs, in any order; a step
            (at least 0) may be a duration. Factors are at least 0, and act from their step on,
            all together.

    Raises:
        ArgumentError: a value is not finite, a factor or a step is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> drops = piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.1})
        >>> [round(float(drops(count)), 3) for count in (0, 9, 10, 20, 99)]
        [1.0, 1.0, 0.5, 0.05, 0.05]
    """
    return PiecewiseConstantSchedule(init_value, _mapping(boundaries_and_scales))


@answering
def piecewise_interpolate_schedule(
    interpolate_type: str,
    init_value: ArrayLike,
    boundaries_and_scales: Mapping[Any, ArrayLike] | Sequence[Sequence[Any]] | None = None,
) -> PiecewiseInterpolateSchedule:
    """Returns a value that reaches, at each of the given steps, a factor of the value before.

    Args:
        interpolate_type: how it gets there, `"linear"` or `"cosine"`.
        init_value: the value at count 0.
        boundaries_and_scales: `{step: factor}`, or a list of such pairs, in any order; a step
            (at least 0) may be a duration. Factors are at least 0 and refer to the value at
            the step before.

    Raises:
        UnknownNameError: `interpolate_type` is neither.
        ArgumentError: a value is not finite, a factor or a step is negative.
        ArgumentTypeError: an argument is not a number (or, for steps, a duration).

    Example:
        >>> slopes = piecewise_interpolate_schedule("linear", 1.0, {4: 3.0, 8: 0.0})
        >>> [float(slopes(count)) for count in (0, 2, 4, 6, 8, 9)]
        [1.0, 2.0, 3.0, 1.5, 0.0, 0.0]
    """
    return PiecewiseInterpolateSchedule(
        interpolate_type, init_value, _mapping(boundaries_and_scales)
    )


def _mapping(pairs: Any) -> Any:
    """Returns a dict of a list of pairs, the form of JSON data; anything else as it is."""
    if isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        return table(pairs, where="boundaries_and_scales")
    return pairs
