"""The numbers of an optimizer that may be scheduled, or edited while a run goes on.

They travel in the state, so that changing one recompiles nothing, and the state's structure is
the same whether a number is constant or scheduled. Decays of moving averages travel as a pair:
in float32, `1 - 0.999` is off by 1e-5 of itself, so it is formed in float64 beforehand.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError
from flaxtrain.optim import DecayRate
from flaxtrain.optim.registry import NamedOptimizer
from flaxtrain.schedules import Schedule
from flaxtrain.spec.packed_numbers import PackedNumbers, Value
from flaxtrain.typing import Array, ArrayLike

# Nothing here is public: `OptSpec` takes such numbers and `OptState` shows them.
__all__ = []

Number: TypeAlias = ArrayLike | Callable[[ArrayLike], ArrayLike]
"""A number, or a function of the number of updates already applied."""

CLIP_NUMBERS = ("clip_norm", "clip_value", "clip_block_rms", "clip_ratio", "clip_z")
"""One for each kind of clipping: `Clip.number`."""

SPEC_NUMBERS = ("learning_rate", "weight_decay", *CLIP_NUMBERS)


def adjustable(entry: NamedOptimizer) -> dict[str, bool]:
    """Returns the hyperparameters that are numbers, and of each whether it is a decay.

    Example:
        >>> from flaxtrain.optim import NAMED
        >>> adjustable(NAMED["rmsprop"])
        {'rho': True, 'eps': False, 'initial_scale': False, 'momentum': False}
    """
    annotations = {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(entry.make).parameters.items()
        if name not in ("learning_rate", *entry.fixed)
    }
    return {
        name: annotation == "Decay"
        for name, annotation in annotations.items()
        if annotation == "Decay" or annotation.startswith("ArrayLike")
    }


def is_number(value: Any) -> bool:
    """Whether a value is a real number, and no bool."""
    if isinstance(value, (jax.Array, np.ndarray)):
        kinds = (jnp.floating, jnp.integer)
        return value.ndim == 0 and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def extremes_of(schedule: Any, name: str, where: str) -> tuple[Any, Any]:
    """Returns the smallest and largest value of a schedule, as far as they can be known."""
    known = schedule.extremes() if isinstance(schedule, Schedule) else None
    if known is not None:
        return known
    if isinstance(schedule, Schedule) and not schedule.is_resolved:
        return 0.5, 0.5  # judged again when the durations are steps
    first = schedule(0)
    if is_concrete(first):  # not while tracing
        check_number(f"{name} at count 0", first, where=where)
        first = float(np.asarray(first))
    return first, first


def check_scheduled(name: str, value: Any, where: str, **bounds: Any) -> None:
    """Checks a number, or the extremes of a schedule.

    Raises:
        FlaxtrainError: as `check_number` does.
    """
    for number in extremes_of(value, name, where) if callable(value) else (value,):
        check_number(name, number, where=where, **bounds)


def is_one(value: Any) -> bool:
    """Whether a value is known to be the number 1."""
    return not callable(value) and is_concrete(value) and value == 1


@dataclass(frozen=True)
class Hyperparameters:
    """The adjustable numbers of one group of parameters.

    Attributes:
        numbers: each a number or a function of the count.
        decays: the names of those that are decays of moving averages.
    """

    numbers: Mapping[str, Number]
    decays: frozenset[str]

    @classmethod
    def of(cls, entry: NamedOptimizer | None, given: Mapping[str, Any]) -> Hyperparameters:
        """Picks the adjustable numbers out of an optimizer's hyperparameters.

        Args:
            entry: the optimizer; None for one that keeps its numbers to itself.
            given: hyperparameters and the spec's own numbers; None is left out.
        """
        kinds = {} if entry is None else adjustable(entry)
        names = (*SPEC_NUMBERS, *kinds)
        chosen: dict[str, Any] = {
            name: value
            for name, value in given.items()
            if name in names
            and (callable(value) or is_number(value))
            # A decay of 1 is a switch (Shampoo sums instead of averaging), so it stays static.
            and not (kinds.get(name, False) and is_one(value))
        }
        return cls(chosen, frozenset(name for name in chosen if kinds.get(name, False)))

    def initial(self) -> PackedNumbers:
        """Returns the numbers as the state holds them before the first update."""
        return PackedNumbers.of(
            {
                name: self._value(name, number(0) if callable(number) else number)
                for name, number in self.numbers.items()
            }
        )

    def at(self, count: Array, stored: PackedNumbers) -> PackedNumbers:
        """Returns the numbers of one update: constants as stored, schedules at `count`."""
        scheduled = {
            name: self._value(name, number(count))
            for name, number in self.numbers.items()
            if callable(number)
        }
        return PackedNumbers.of({**stored, **scheduled}) if scheduled else stored

    def check_editable(self, name: str, *, where: str) -> None:
        """Refuses names that are not in the state, and numbers that a schedule sets.

        Raises:
            ArgumentError: the number can't be edited.
        """
        if name not in self.numbers:
            raise ArgumentError(
                f"{name!r} is not among the numbers of this group",
                where=where,
                fix=f"one of {', '.join(sorted(self.numbers))}; what is None or off when the "
                "run is built stays so",
            )
        if callable(self.numbers[name]):
            raise ArgumentError(
                f"{name!r} follows a schedule: {self.numbers[name]!r}",
                where=where,
                fix="change the schedule in the spec",
            )

    def value(self, name: str, number: ArrayLike, *, where: str) -> Value:
        """Returns a number as the state holds it.

        Raises:
            ArgumentError: a decay is set to 1, which would be another method.
        """
        if name in self.decays and is_one(number):
            raise ArgumentError(
                f"{name}={number}: sums instead of averages are another method",
                where=where,
                fix="pass a number below 1, or build the run with 1 from its beginning",
            )
        # The complement of a decay is formed in float64.
        return self._value(name, np.asarray(number).item() if is_concrete(number) else number)

    def _value(self, name: str, number: Any) -> Value:
        dtype = jax.dtypes.canonicalize_dtype(float)
        if jnp.shape(number) != ():
            raise ArgumentError(
                f"the {name.replace('_', ' ')} has shape {jnp.shape(number)}, not that of "
                "a scalar",
                where=f"{name}={self.numbers.get(name)!r}",
                fix="return one number for each count",
            )
        if name not in self.decays:
            return jnp.array(number, dtype)
        if isinstance(number, numbers.Real):
            return DecayRate.of(float(number), dtype)
        value = jnp.asarray(number, dtype)
        return DecayRate(value, 1 - value)


class Numbers(NamedTuple):
    """What one group's update depends on: its learning rate and hyperparameters."""

    learning_rate: ArrayLike
    hyperparams: Mapping[str, Value]


def in_dtype(values: Mapping[str, Value], dtype: Any) -> dict[str, Value]:
    """Returns the numbers in the dtype of the arrays that they meet."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), dict(values))
