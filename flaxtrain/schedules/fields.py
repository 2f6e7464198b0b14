"""Fields of schedules: numbers, arrays, tracers, durations, and tables keyed by durations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.durations import parse
from flaxtrain.errors import ArgumentError
from flaxtrain.typing import Array, ArrayLike

__all__ = [
    "Field",
    "Steps",
    "check_steps",
    "check_value",
    "elapsed",
    "extent",
    "hashable",
    "is_array",
    "is_known",
    "items",
    "remaining",
    "same",
    "settled",
    "table",
    "whole_periods",
    "within",
]

Steps: TypeAlias = ArrayLike | str
"""A number of steps, or a duration such as `"5%"` that `resolve` turns into one."""

Field: TypeAlias = Any
"""What a field holds: `ArrayLike` or `Steps`, declared so that one can compute with it."""


def items(value: Any) -> tuple[Any, ...]:
    """Returns the entries of a tuple, the keys of a table, or the value as the only entry."""
    return tuple(value) if isinstance(value, (tuple, Mapping)) else (value,)


def is_array(value: Any) -> bool:
    """Whether `value` is a concrete array with at least one axis."""
    return isinstance(value, (np.ndarray, jax.Array)) and is_concrete(value) and value.ndim > 0


def is_known(*values: Any) -> bool:
    """Whether all are numbers now: neither tracers nor relative durations."""
    return all(is_concrete(value) and not isinstance(value, str) for value in values)


def settled(value: Any, *, duration_of: str | None = None) -> Any:
    """Returns the field as it is stored.

    Scalars of numpy and jax become Python numbers, sequences become tuples; in a duration, a
    text that needs no horizon (`"500"`) becomes a number of steps. Of a table, the keys are
    durations.

    Args:
        value: what the caller gave.
        duration_of: for durations, the argument's place, for messages.
    """
    if isinstance(value, (list, tuple)):
        return tuple(settled(item, duration_of=duration_of) for item in value)
    if isinstance(value, Mapping):
        pairs = [(settled(k, duration_of=duration_of), settled(v)) for k, v in value.items()]
        return table(pairs, where=duration_of)
    if duration_of is not None and isinstance(value, str):
        parsed = parse(value, where=duration_of)
        return value.strip() if parsed.is_relative else int(parsed.amount)
    if (
        isinstance(value, (np.generic, np.ndarray, jax.Array))
        and is_concrete(value)
        and value.ndim == 0
    ):
        return value.item()
    return value


def table(pairs: Iterable[Any], *, where: str | None = None) -> dict[Any, Any]:
    """Returns the pairs as a dict.

    Raises:
        ArgumentError: two pairs have the same key (`"500"` and 500, or two durations that turn
            out to be equal).

    Example:
        >>> table([(100, 0.1), ("50%", 0.5)])
        {100: 0.1, '50%': 0.5}
    """
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ArgumentError(
                f"step {key!r} is there twice", where=where, fix="pass every step once"
            )
        found[key] = value
    return found


def same(a: Any, b: Any) -> bool:
    """Equality of two fields; arrays are equal when all entries are, tracers when identical."""
    if a is b:
        return True
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        both = isinstance(a, Mapping) and isinstance(b, Mapping)
        return both and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if not (is_concrete(a) and is_concrete(b)):
        return False
    if is_array(a) or is_array(b):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def hashable(value: Any) -> Any:
    """Returns something that hashes alike for equal fields (of arrays, the shape)."""
    if isinstance(value, tuple):
        return tuple(map(hashable, value))
    if isinstance(value, Mapping):
        return frozenset((key, hashable(item)) for key, item in value.items())
    if not is_concrete(value):
        return id(value)
    return value.shape if is_array(value) else value


def check_value(name: str, value: Any, *, minimum: float = -np.inf, where: str) -> None:
    """Refuses anything but a finite real number `>= minimum`, or an array of such."""
    for entry in np.ravel(value) if is_array(value) else (value,):
        check_number(name, entry, minimum=minimum, where=where)


def check_steps(name: str, value: Any, *, positive: bool = False, where: str) -> None:
    """Refuses a negative number of steps (or zero, if `positive`); relative durations pass."""
    if not isinstance(value, str):
        exclude = (0.0,) if positive else ()
        check_number(name, value, minimum=0.0, exclude=exclude, where=where)


def elapsed(count: ArrayLike, steps: Any, begin: Any = 0) -> Array:
    """Returns `count - begin` limited to `[0, steps]`, as a weakly typed float.

    The limits are applied to integers, so a large count loses nothing to rounding; the result
    is float64 when x64 is on, whatever the integer type of the count. The order of operations
    also holds for unsigned counts, and for limits that the count's type can't represent.

    Example:
        >>> [float(elapsed(count, 10, begin=2)) for count in (0, 5, 2**40)]
        [0.0, 3.0, 10.0]
    """
    if isinstance(count, int) and is_known(begin, steps):
        return jnp.asarray(1.0 * min(max(count - begin, 0), steps))
    begin, steps = within(begin, count), within(steps, count)
    return 1.0 * jnp.minimum(jnp.maximum(count, begin) - begin, steps)


def remaining(count: ArrayLike, steps: Any, begin: Any = 0) -> Array:
    """Returns the part of the steps since `begin` that is left: 1 at first, exactly 0 at last.

    A compiler may divide by multiplying with a rounded reciprocal, and then `1 - t / T` at the
    end is a little more or less than 0: a negative rate, or NaN under a root.

    Example:
        >>> [round(float(remaining(count, 4, begin=2)), 2) for count in (0, 2, 3, 6, 7)]
        [1.0, 1.0, 0.75, 0.0, 0.0]
    """
    t, total = elapsed(count, steps, begin), 1.0 * steps
    return jnp.where(t < total, 1.0 - t / total, 0.0)


def whole_periods(count: ArrayLike, period: Any, begin: Any = 0) -> Array:
    """Returns how often `period` fits into the steps since `begin`, as a weakly typed float.

    The division is one of integers wherever these are: the quotient of two floats, which a
    compiler may form with a rounded reciprocal, can be just below a whole number.

    Example:
        >>> [float(whole_periods(count, 10, begin=2)) for count in (0, 11, 12, 10**6 + 2)]
        [0.0, 0.0, 1.0, 100000.0]
    """
    if isinstance(count, int) and is_known(begin, period):
        return jnp.asarray(1.0 * (max(count - begin, 0) // period))
    begin = within(begin, count)
    return 1.0 * ((jnp.maximum(count, begin) - begin) // within(period, count))


def within(limit: Any, count: ArrayLike) -> Any:
    """Returns `limit`, or the largest integer that the array `count` can hold if smaller."""
    if isinstance(limit, int) and not isinstance(count, int):
        dtype = jnp.result_type(count)
        return (
            min(limit, int(jnp.iinfo(dtype).max))
            if jnp.issubdtype(dtype, jnp.integer)
            else limit
        )
    return limit


def extent(*values: Any) -> tuple[float, float] | None:
    """Returns the smallest and the largest entry of the values; None if one is a tracer."""
    if not all(map(is_concrete, values)):
        return None
    return min(float(np.min(value)) for value in values), max(
        float(np.max(value)) for value in values
    )
