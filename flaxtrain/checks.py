"""Checks of arguments: their names, and the range of their concrete values.

Factories are also called with tracers (`vmap` over a learning rate): a value that is not known
yet passes, everything else is judged at construction.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.text import kind_of, with_article

__all__ = [
    "INT32_MAX",
    "SEED_MAX",
    "as_directory",
    "check_choice",
    "check_flag",
    "check_instance",
    "check_integer",
    "check_number",
    "floating_dtype",
    "is_concrete",
]

INT32_MAX = 2**31 - 1
"""The largest number that a counter on the device holds."""

SEED_MAX = 2**32 - 1
"""The largest seed of a key: jax takes the seed 2^32 for 0 where it has no 64 bits."""


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
    finite: bool = True,
    where: str | None = None,
) -> None:
    """Refuses a scalar that is not a finite real number in `[minimum, maximum]`.

    Args:
        name: the argument's name, for the message.
        value: a Python number, a numpy or jax scalar, or a tracer (passes).
        minimum: smallest value allowed.
        maximum: largest value allowed.
        exclude: values in the range that are refused all the same (an open end).
        finite: refuse infinity too; False for bounds that may be none.
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
            f"{name}={value!r} is {kind_of(value)}, not a number",
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
    infinite = finite and not math.isfinite(number)
    if not (minimum <= number <= maximum) or infinite or number in exclude:
        low = "(" if minimum in exclude or minimum == -math.inf else "["
        high = ")" if maximum in exclude or maximum == math.inf else "]"
        kind = "finite number" if finite else "number"
        raise ArgumentError(
            f"{name}={value} is out of range",
            where=where,
            fix=f"pass a {kind} in {low}{minimum:g}, {maximum:g}{high}",
        )


def check_integer(
    name: str,
    value: Any,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    where: str | None = None,
) -> None:
    """Refuses anything but an integer from `minimum` to `maximum`; tracers pass.

    Raises:
        ArgumentTypeError: `value` is not an integer.
        ArgumentError: `value` is below `minimum` or above `maximum`.

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
                f"{name}={value!r} is {kind_of(value)}, not an integer",
                where=where,
                fix=f"pass an integer for {name}",
            )
    if minimum is not None and int(value) < minimum:
        raise ArgumentError(
            f"{name}={value} is too small", where=where, fix=f"pass an integer >= {minimum}"
        )
    if maximum is not None and int(value) > maximum:
        raise ArgumentError(
            f"{name}={value} is too large", where=where, fix=f"pass an integer <= {maximum}"
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
            f"{name}={value!r} is {kind_of(value)}, not True or False",
            where=where,
            fix=f"pass True or False for {name}",
        )


def check_instance(
    name: str, value: Any, kind: type[Any], *, where: str, fix: str, show: bool = True
) -> None:
    """Refuses anything but an instance of a class.

    Args:
        name: the argument's name, for the message.
        value: what was passed.
        kind: the class.
        where: the function or class that was called.
        fix: what to do about it.
        show: whether the message has the value; False where it can be pages long.

    Raises:
        ArgumentTypeError: `value` is something else.

    Example:
        >>> check_instance("seed", 3, int, where="fit", fix="pass an integer")
    """
    if not isinstance(value, kind):
        said = f"{name}={value!r}" if show else name
        raise ArgumentTypeError(
            f"{said} is {kind_of(value)}, not {with_article(kind.__name__)}",
            where=where,
            fix=fix,
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
            f"{name}={value!r} is {kind_of(value)}, not a string",
            where=where,
            fix=f"pass one of {', '.join(choices)}",
        )
    if value not in choices:
        raise unknown_name(name, value, choices, where=where)


def as_directory(name: str, directory: str | Path | None, *, where: str) -> Path | None:
    """Returns the path of a directory, or None where none is given.

    Args:
        name: the argument's name, for the message.
        directory: what was passed.
        where: the class that was called.

    Raises:
        ArgumentError: it is an empty text.
        ArgumentTypeError: it is no path.

    Example:
        >>> as_directory("workdir", "runs/../first", where="Trainer").name
        'first'
    """
    if directory is None:
        return None
    if directory == "":
        raise ArgumentError(
            f"{name} is an empty text",
            where=where,
            fix="name a folder, such as '.', or leave it out",
        )
    if not isinstance(directory, (str, Path)):
        raise ArgumentTypeError(
            f"{name}={directory!r} is {kind_of(directory)}, not a path",
            where=where,
            fix="pass a string or a pathlib.Path",
        )
    return Path(directory).expanduser()


def floating_dtype(
    name: str, dtype: Any, *, allow_complex: bool = True, where: str | None = None
) -> np.dtype[Any]:
    """Returns what somebody passed as a dtype, and refuses all but floating ones.

    Args:
        name: the argument's name, for the message.
        dtype: a dtype, its name, or a scalar type such as `jnp.bfloat16`.
        allow_complex: whether complex dtypes will do.
        where: the function or class that was called.

    Raises:
        ArgumentTypeError: it is none of these, integer or bool; or complex, where that is not
            allowed.

    Example:
        >>> floating_dtype("mu_dtype", "bfloat16")
        dtype(bfloat16)
    """
    try:
        # numpy takes None for float64.
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    wanted = jnp.inexact if allow_complex else jnp.floating
    if found is None or not jnp.issubdtype(found, wanted):
        raise ArgumentTypeError(
            f"{name}={dtype!r} is not a floating dtype",
            where=where,
            fix='pass a dtype such as jnp.float32 or "bfloat16"',
        )
    return found
