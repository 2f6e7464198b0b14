"""What every schedule is: data, and a function of the count.

The count is the number of updates already applied: 0 at the first update. Fields that are
durations may be relative (`"5%"`, `"2ep"`); `resolve` turns them into steps once, when the
length of the run is known.
"""

from __future__ import annotations

import abc
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Self

from flaxtrain.durations import Horizon, to_steps
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.schedules.fields import hashable, items, same, settled, table
from flaxtrain.typing import ArrayLike

__all__ = ["Schedule"]


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(abc.ABC):
    """A value that depends on the number of updates already applied.

    Subclasses are frozen dataclasses whose fields are the arguments of the factory named
    `kind`; `durations` lists the fields that hold durations. A schedule prints as the call that
    makes it, compares and hashes by its fields, and goes through JSON exactly (`to_dict`,
    `from_dict`).

    Example:
        >>> from flaxtrain.schedules import linear_schedule
        >>> warmup = linear_schedule(0.0, 1.0, transition_steps="10%")
        >>> warmup.is_resolved
        False
        >>> ready = warmup.resolve(Horizon(batches=40))
        >>> [float(ready(count)) for count in (0, 1, 4)]
        [0.0, 0.25, 1.0]
    """

    kind: ClassVar[str]
    durations: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in self._arguments().items():
            place = f"{self.kind}({name}={value!r})" if name in self.durations else None
            object.__setattr__(self, name, settled(value, duration_of=place))
        self.check()

    @abc.abstractmethod
    def check(self) -> None:
        """Raises if a field is out of range; durations that are still relative pass."""

    @abc.abstractmethod
    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`; every duration is a number here."""

    @abc.abstractmethod
    def extremes(self) -> tuple[float, float] | None:
        """Returns bounds of the values that can occur, lowest first; None when not known."""

    def __call__(self, count: ArrayLike) -> ArrayLike:
        """Returns the value at `count`, the number of updates already applied.

        Args:
            count: a Python integer, an integer array of any shape, or a tracer.

        Returns:
            A float of the shape of `count` (a constant schedule returns its value as it is).

        Raises:
            ArgumentError: a duration is still relative.
        """
        relative = self.relative_durations()
        if relative:
            raise ArgumentError(
                f"durations of this schedule are still relative: {', '.join(relative)}",
                where=repr(self),
                fix="call resolve(Horizon(batches=...)) first, or give durations in steps",
            )
        return self.at(int(count) if isinstance(count, numbers.Integral) else count)

    @property
    def is_resolved(self) -> bool:
        """Whether every duration, nested schedules included, is a number of steps."""
        return not self.relative_durations()

    def relative_durations(self) -> list[str]:
        """Returns the durations that `resolve` would replace, nested ones too."""
        found: list[str] = []
        for name, value in self._arguments().items():
            for item in items(value):
                if isinstance(item, Schedule):
                    found.extend(item.relative_durations())
                elif isinstance(item, str) and name in self.durations:
                    found.append(f"{name}={item!r}")
        return found

    def resolve(self, horizon: Horizon) -> Self:
        """Returns the same schedule with every relative duration turned into steps.

        Args:
            horizon: what is known about the run; percentages are of `horizon.updates`, in
                nested schedules too.

        Raises:
            ArgumentError: `horizon` lacks a number, or the resolved durations don't fit
                together.
        """
        if self.is_resolved:
            return self
        return replace(
            self, **{n: self._resolved(n, v, horizon) for n, v in self._arguments().items()}
        )

    def _resolved(self, name: str, value: Any, horizon: Horizon) -> Any:
        if isinstance(value, tuple):
            return tuple(self._resolved(name, item, horizon) for item in value)
        if isinstance(value, Schedule):
            return value.resolve(horizon)
        place = f"{self.kind}({name}={value!r})"
        if isinstance(value, Mapping):
            pairs = [(self._resolved(name, k, horizon), v) for k, v in value.items()]
            return table(pairs, where=place)
        if isinstance(value, str) and name in self.durations:
            return to_steps(value, horizon, where=place)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Returns the schedule as JSON data: `{"schedule": name, argument: value, ...}`.

        Raises:
            ArgumentTypeError: a part is a plain callable or an array, which JSON can't hold.
        """
        data = {
            name: _as_data(value, f"{self.kind}({name}=...)")
            for name, value in self._arguments().items()
        }
        return {"schedule": self.kind, **data}

    def _arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule) or type(self) is not type(other):
            return NotImplemented
        theirs = other._arguments()
        return all(same(value, theirs[name]) for name, value in self._arguments().items())

    def __hash__(self) -> int:
        return hash((self.kind, *map(hashable, self._arguments().values())))

    def __repr__(self) -> str:
        defaults = {field.name: field.default for field in fields(self)}
        shown = [
            f"{name}={value!r}"
            for name, value in self._arguments().items()
            if defaults[name] is MISSING or not same(value, defaults[name])
        ]
        return f"{self.kind}({', '.join(shown)})"


def _as_data(value: Any, where: str) -> Any:
    if isinstance(value, tuple):
        return [_as_data(item, where) for item in value]
    if isinstance(value, Mapping):  # as pairs: JSON would turn a number that is a key into text
        return [[key, _as_data(item, where)] for key, item in value.items()]
    if isinstance(value, Schedule):
        return value.to_dict()
    if value is None or isinstance(value, (int, float, str)):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    found = f"the function {name}" if callable(value) else repr(value)
    raise ArgumentTypeError(
        f"{found} can't be written as data",
        where=where,
        fix="build it from flaxtrain.schedules and plain numbers",
    )
