"""The schedule that does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flaxtrain.answering import answering
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.fields import Field, check_value, extent
from flaxtrain.typing import ArrayLike

__all__ = ["ConstantSchedule", "constant_schedule"]


@dataclass(frozen=True, eq=False, repr=False)
class ConstantSchedule(Schedule):
    """One value at every count; made by `constant_schedule`."""

    kind: ClassVar[str] = "constant_schedule"

    value: Field

    def check(self) -> None:
        """Refuses a value that is not finite."""
        check_value("value", self.value, where=self.kind)

    def at(self, count: ArrayLike) -> ArrayLike:
        """Returns the value itself: a Python number stays one."""
        return self.value

    def extremes(self) -> tuple[float, float] | None:
        """Returns the value twice."""
        return extent(self.value)


@answering
def constant_schedule(value: ArrayLike) -> ConstantSchedule:
    """Returns the schedule `f(count) = value`.

    Args:
        value: a finite number.

    Raises:
        ArgumentError: `value` is NaN or infinite.
        ArgumentTypeError: `value` is not a number.

    Example:
        >>> constant_schedule(0.1), constant_schedule(0.1)(7)
        (constant_schedule(value=0.1), 0.1)
    """
    return ConstantSchedule(value)
