"""Range checks on the concrete values of arguments.

Factories are also called with tracers (`vmap` over a learning rate): a value that is not known
yet passes, everything else is judged at construction.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name

__all__ = ["check_choice", "check_flag", "check_integer", "check_number", "is_concrete"]


def is_concrete(value: object) -> bool:
    """Whether `value` is known now, that is, not a tracer."""
    return not isinstance(value, Tracer)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclude: tuple[float, ...] = (),
    where: str | None = None,
) -> None:
    """Refuses a scalar that is not a finite real number in `[minimum, maximum]`.

    Args:
        name: the argument's name, for the message.
        value: a Python number, a numpy or jax scalar, or a tracer (passes).
        minimum: smallest value allowed.
        maximum: largest value allowed.
        exclude: values in the range that are refused all the same (an open end).
        where: the function or class that was called.

    Raises:
        ArgumentTypeError: `value` is not a real scalar.
        ArgumentError: `value` is NaN, infinite or out of range.

    Example:
        >>> check_number("b1", 0.9, minimum=0.0, maximum=1.0, exclude=(1.0,))
    """
    if not is_concrete(value):
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (numbers.Real, np.ndarray, np.generic, jax.Array)
    ):
        raise ArgumentTypeError(
            f"{name}={value!r} is a {type(value).__name__}, not a number",
            where=where,
            fix=f"pass a number for {name}",
        )
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise ArgumentTypeError(
            f"{name} has shape {array.shape} and dtype {array.dtype}, not a real scalar",
            where=where,
            fix=f"pass one number for {name}",
        )
    number = float(array)
    if not (minimum <= number <= maximum) or not math.isfinite(number) or number in exclude:
        low = "(" if minimum in exclude or minimum == -math.inf else "["
        high = ")" if maximum in exclude or maximum == math.inf else "]"
        raise ArgumentError(
            f"{name}={value} is out of range",
            where=where,
            fix=f"pass a finite number in {low}{minimum:g}, {maximum:g}{high}",
        )


def check_integer(
    name: str, value: Any, *, minimum: int | None = None, where: str | None = None
) -> None:
    """Refuses anything but an integer `>= minimum`; tracers pass.

    Raises:
        ArgumentTypeError: `value` is not an integer.
        ArgumentError: `value` is below `minimum`.

    Example:
        >>> check_integer("steps", 3, minimum=1)
    """
    if not is_concrete(value):
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        integral = (
            isinstance(value, (np.ndarray, jax.Array))
            and value.ndim == 0
            and value.dtype.kind in "iu"
        )
        if not integral:
            raise ArgumentTypeError(
                f"{name}={value!r} is a {type(value).__name__}, not an integer",
                where=where,
                fix=f"pass an integer for {name}",
            )
    if minimum is not None and int(value) < minimum:
        raise ArgumentError(
            f"{name}={value} is too small", where=where, fix=f"pass an integer >= {minimum}"
        )


def check_flag(name: str, value: Any, *, where: str | None = None) -> None:
    """Refuses anything but True and False.

    Raises:
        ArgumentTypeError: `value` is not a bool.

    Example:
        >>> check_flag("nesterov", True)
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(
            f"{name}={value!r} is a {type(value).__name__}, not True or False",
            where=where,
            fix=f"pass True or False for {name}",
        )


def check_choice(
    name: str, value: Any, choices: Collection[str], *, where: str | None = None
) -> None:
    """Refuses anything but one of a few words.

    Raises:
        UnknownNameError: `value` is not among `choices`; the nearest one is named.
        ArgumentTypeError: `value` is not a string.

    Example:
        >>> check_choice("mode", "hard", ("hard", "smooth"))
    """
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"{name}={value!r} is a {type(value).__name__}, not a string",
            where=where,
            fix=f"pass one of {', '.join(choices)}",
        )
    if value not in choices:
        raise unknown_name(name, value, choices, where=where)
