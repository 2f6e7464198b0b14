"""How long something takes, in words a person uses, and its translation to steps.

=================  ==============================  ==============================
text               means                           needs to know
=================  ==============================  ==============================
`500`, `"500"`     500 steps (also `"500st"`)      nothing
`"10ep"`           10 passes over the data         batches per epoch
`"5%"`             a twentieth of the run          batches in the run
`"1M ex"`          1,000,000 examples              batch size
=================  ==============================  ==============================

Numbers may be fractions (`"0.5ep"`, `"2.5%"`), and steps and examples may carry k, M or B
(thousand, million, 10^9). Arithmetic is exact; a result that is not a whole number of steps is
rounded to the nearest one, halves up, and a positive duration is never rounded to zero.

A step is an optimizer update in whatever a spec says (`to_steps`), with one exception:
`Spikes(warmup=)` counts batches, since each of them is judged. What a loop is told counts
batches too (`to_batches`): how many come is known beforehand; how many will be rejected, and
make no update, is not. The two also differ where several batches make an update.
"""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.text import kind_of

__all__ = [
    "Duration",
    "DurationLike",
    "Horizon",
    "Resolvable",
    "parse",
    "to_batches",
    "to_steps",
]

DurationLike: TypeAlias = int | np.integer[Any] | str
"""A number of steps, or a text such as `"500"`, `"10ep"`, `"5%"`, `"1M ex"`."""

_TEXT = re.compile(
    r"(?P<number>\d{1,18}(?:\.\d{1,18})?(?:[eE]\+?\d{1,2})?)\s*(?P<factor>[kKMB]?)\s*(?P<unit>st|ep|ex|%|)"
)
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_FORMS = "'500' or '500st' (steps), '10ep' (epochs), '5%' (of the run), '1M ex' (examples)"


@dataclass(frozen=True)
class Horizon:
    """What is known about a run, so that relative durations can be turned into steps.

    Args:
        batches: batches in the whole run; None when not known yet.
        batches_per_epoch: batches in one pass over the data.
        batch_size: examples in a batch.
        batches_per_update: batches that one optimizer update is made of.

    Raises:
        ArgumentError: a number is below 1.
        ArgumentTypeError: a number is not an integer.

    Example:
        >>> Horizon(batches=2000, batches_per_update=4).updates
        500
    """

    batches: int | None = None
    batches_per_epoch: int | None = None
    batch_size: int | None = None
    batches_per_update: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_integer(field.name, value, minimum=1, where="Horizon")
                object.__setattr__(self, field.name, int(value))

    @property
    def updates(self) -> int | None:
        """Optimizer updates in the whole run, at least 1; None when not known yet."""
        total = self.batches
        return None if total is None else max(1, total // self.batches_per_update)


@runtime_checkable
class Resolvable(Protocol):
    """What holds durations: schedules, clips, averages and the like."""

    def resolve(self, horizon: Horizon) -> Any:
        """Returns it with all durations in steps."""
        ...


@dataclass(frozen=True)
class Duration:
    """A parsed duration: an exact amount of one unit.

    Args:
        amount: how many units; for `"%"` the percentage itself.
        unit: `"st"` (steps), `"ep"` (epochs), `"%"` (of the run) or `"ex"` (examples).
        text: what was parsed, for messages.

    Example:
        >>> parse("1.5k ex")
        Duration(amount=Fraction(1500, 1), unit='ex', text='1.5k ex')
    """

    amount: Fraction
    unit: str
    text: str

    @property
    def is_relative(self) -> bool:
        """Whether a horizon is needed to know the number of steps."""
        return self.unit != "st"

    def steps(
        self, horizon: Horizon, *, where: str | None = None, counted: str = "steps"
    ) -> int:
        """Returns the number of steps, rounded to the nearest (halves up, positive stays >= 1).

        Args:
            horizon: what is known about the run.
            where: the argument it was given for, for messages.
            counted: what is counted, for messages.

        Raises:
            ArgumentError: `horizon` lacks the number that this unit needs.
        """
        known = partial(_known, duration=self, where=where, counted=counted)
        match self.unit:
            case "st":
                exact = self.amount
            case "ep":
                per_epoch = known(
                    horizon.batches_per_epoch,
                    "number of batches per epoch",
                    "batches_per_epoch",
                )
                exact = self.amount * per_epoch / horizon.batches_per_update
            case "%":
                total = known(horizon.updates, "number of batches in the run", "batches")
                exact = self.amount * total / 100
            case _:
                rows = known(horizon.batch_size, "batch size", "batch_size")
                exact = self.amount / (rows * horizon.batches_per_update)
        nearest = math.floor(exact + Fraction(1, 2))
        return max(nearest, 1) if exact > 0 else 0


def _known(
    value: int | None,
    words: str,
    field: str,
    *,
    duration: Duration,
    where: str | None,
    counted: str,
) -> int:
    if value is None:
        raise ArgumentError(
            f"the {words} is not known yet: {duration.text!r} can't be turned into {counted}",
            where=where,
            fix=f"give the duration in {counted}, or a horizon with {field}=",
        )
    return value


def parse(duration: DurationLike, *, where: str | None = None) -> Duration:
    """Reads a duration.

    Args:
        duration: a number of steps, or a text (see the table at the top of this module).
        where: the argument it was given for, for messages.

    Raises:
        ArgumentError: the text is not a duration, is negative, or asks for a fraction of a
            step.
        ArgumentTypeError: neither an integer nor a text.

    Example:
        >>> parse("10ep").unit, parse("10ep").is_relative, parse(500).is_relative
        ('ep', True, False)
    """
    if isinstance(duration, str):
        return _parse_text(duration, where)
    if isinstance(duration, (bool, np.bool_)) or not isinstance(duration, numbers.Integral):
        raise ArgumentTypeError(
            f"{duration!r} is {kind_of(duration)}, not a duration",
            where=where,
            fix=f"pass an integer number of steps, or a text: {_FORMS}",
        )
    if duration < 0:
        raise ArgumentError(
            f"duration {duration} is negative", where=where, fix="pass a duration >= 0"
        )
    return Duration(Fraction(int(duration)), "st", str(duration))


def _parse_text(text: str, where: str | None) -> Duration:
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        found = (
            "is negative" if _TEXT.fullmatch(text.strip().lstrip("-")) else "is not a duration"
        )
        raise ArgumentError(f"{text!r} {found}", where=where, fix=f"write it like {_FORMS}")
    unit, factor = match["unit"] or "st", match["factor"]
    if factor and unit in ("ep", "%"):
        raise ArgumentError(
            f"{text!r} is not a duration",
            where=where,
            fix="k, M and B go with steps and examples: '10k', '1M ex'",
        )
    amount = Fraction(match["number"]) * _FACTORS[factor]
    if unit == "st" and amount.denominator != 1:
        raise ArgumentError(
            f"{text!r} is not a whole number of steps",
            where=where,
            fix=f"write it like {_FORMS}",
        )
    return Duration(amount, unit, text)


def to_steps(duration: DurationLike, horizon: Horizon, *, where: str | None = None) -> int:
    """Returns the number of optimizer updates that `duration` lasts.

    Args:
        duration: a number of steps, or a text (see the table at the top of this module).
        horizon: what is known about the run.
        where: the argument it was given for, for messages.

    Returns:
        The nearest whole number of steps, halves rounded up; at least 1 for a positive
        duration.

    Raises:
        ArgumentError: bad text, negative, or `horizon` lacks the number that is needed.
        ArgumentTypeError: neither an integer nor a text.

    Example:
        >>> horizon = Horizon(batches=1000, batches_per_epoch=45, batch_size=128)
        >>> [to_steps(text, horizon) for text in ("500", "10ep", "5%", "1M ex", "0.001%")]
        [500, 450, 50, 7813, 1]
    """
    return parse(duration, where=where).steps(horizon, where=where)


def to_batches(duration: DurationLike, horizon: Horizon, *, where: str | None = None) -> int:
    """Returns the number of batches that `duration` lasts; a plain number counts batches.

    Args:
        duration: as for `to_steps`.
        horizon: likewise.
        where: likewise.

    Returns:
        The nearest whole number of batches, as for `to_steps`.

    Raises:
        ArgumentError: as for `to_steps`.
        ArgumentTypeError: likewise.

    Example:
        >>> horizon = Horizon(batches=1000, batches_per_epoch=40, batches_per_update=4)
        >>> [(to_batches(text, horizon), to_steps(text, horizon)) for text in (40, "1ep", "4%")]
        [(40, 40), (40, 10), (40, 10)]
    """
    each = replace(horizon, batches_per_update=1)
    return parse(duration, where=where).steps(each, where=where, counted="batches")
