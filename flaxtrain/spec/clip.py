"""What the kinds of clipping have in common, and what is asked of the two sorts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from flaxtrain.answering import answering
from flaxtrain.durations import Horizon
from flaxtrain.params.facts import ParamFact
from flaxtrain.schedules import Schedule
from flaxtrain.spec.declaration import Declaration, as_float, names_of, plain
from flaxtrain.spec.hyperparameters import Number, check_scheduled
from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.typing import Array, ArrayLike

__all__ = ["Clip"]


class Clip(Declaration):
    """What the kinds of clipping have in common.

    Each has one number that may be a schedule, its first argument. It travels in the state and
    can be edited while a run goes on, by the name `number`.
    """

    number: ClassVar[str]

    @property
    def bound(self) -> Number:
        """The number, or the schedule of it."""
        return getattr(self, names_of(type(self))[0])

    def memory(self) -> PackedNumbers:
        """Returns what it remembers before the first update; most kinds: nothing."""
        return PackedNumbers.of({})

    def resolve(self, horizon: Horizon) -> Self:
        """Returns the clip with every relative duration turned into steps.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs.
        """
        return self.map(lambda part: part.resolve(horizon) if _is_relative(part) else part)

    def _check(self, bound: Any) -> Any:
        name, where = names_of(type(self))[0], type(self).__name__
        check_scheduled(name, bound, where, minimum=0.0, exclude=(0.0,))
        return as_float(plain(bound))


def _is_relative(value: Any) -> bool:
    return isinstance(value, Schedule) and not value.is_resolved


class LimitClip(Clip):
    """A clip whose only argument is a limit."""

    @answering
    def __init__(self, limit: ArrayLike | Callable[[ArrayLike], ArrayLike]) -> None:
        self._set(limit=self._check(limit))


@runtime_checkable
class ScaleClip(Protocol):
    """One factor for all that is clipped together."""

    def factor(
        self, norm: Array, bound: Array, memory: PackedNumbers
    ) -> tuple[Array, PackedNumbers]:
        """Returns the factor, a scalar, and what is remembered for the next update.

        Args:
            norm: the norm of the gradient, a float scalar.
            bound: the number.
            memory: what was remembered.
        """
        ...


@runtime_checkable
class ArrayClip(Protocol):
    """Clipping that looks at one parameter at a time."""

    def clip(self, grad: Array, bound: Array, param: Array, fact: ParamFact) -> Array:
        """Returns the gradient of one parameter, clipped.

        Args:
            grad: the gradient, of float32 precision at least.
            bound: the number, of its real dtype.
            param: the parameter.
            fact: the facts about it.
        """
        ...
