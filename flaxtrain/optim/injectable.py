"""Which arguments of a factory are hyperparameters, and how these numbers are stored."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.typing import Array, ArrayLike, DTypeLike

__all__ = [
    "has_dtype",
    "is_number",
    "is_static_integer",
    "kept_float",
    "may_be_scheduled",
    "stored",
]

_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)
_NO_NUMBERS = ("mask", "label", "labels", "fn", "filter", "predicate", "callback")
"""Last words of the names of parameters that take trees or functions."""


def is_number(value: Any) -> bool:
    """Whether an argument is a number or a numeric array; True and False are not.

    Example:
        >>> [is_number(value) for value in (0.1, np.float32(1), True, "0.1", None)]
        [True, True, False, False, False]
    """
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, _NUMBERS)


def is_static_integer(factory: Callable[..., Any], name: str, value: Any) -> bool:
    """Whether an argument is a Python int of a parameter that takes no floats and no arrays.

    Such a parameter is a size, an axis or a seed: code branches on it, or makes shapes of it.

    Example:
        >>> def make(rate: float, block_size: int = 8, axis: int | None = None): ...
        >>> [is_static_integer(make, name, 1) for name in ("rate", "block_size", "axis")]
        [False, True, True]
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    parameter = inspect.signature(factory).parameters.get(name)
    if parameter is None:
        return False
    hint = _hints(factory).get(name, parameter.annotation)
    if isinstance(hint, str):  # it could not be evaluated
        return {"int"} == {part.strip() for part in hint.split("|")} - {"None"}
    members = _members(hint)
    return int in members and not any(_is_numeric(member) for member in members - {int})


def may_be_scheduled(factory: Callable[..., Any], name: str, value: Any) -> bool:
    """Whether a callable argument is a schedule: whether its parameter takes numbers.

    The annotation decides, then the default, then the name: `mask`, `labels` and `..._fn` take
    none. A parameter that says nothing may be scheduled.

    Example:
        >>> def make(rate, mask=None, temperature: float = 1.0): ...
        >>> [may_be_scheduled(make, name, abs) for name in ("rate", "mask", "temperature")]
        [True, False, True]
    """
    parameter = inspect.signature(factory).parameters.get(name)
    if parameter is not None:
        if is_number(parameter.default):
            return True
        hint = _hints(factory).get(name, parameter.annotation)
        members = _members(hint)
        if any(_is_numeric(member) for member in members):
            return True
        says_nothing = {inspect.Parameter.empty, Any, object, types.NoneType}
        if not isinstance(hint, str) and not says_nothing >= members:
            return False
    return name.rsplit("_", 1)[-1] not in _NO_NUMBERS


def has_dtype(value: Any) -> bool:
    """Whether a value is an array with a dtype of its own, not that of a Python number."""
    return isinstance(value, jax.Array) and not value.weak_type


def stored(value: ArrayLike, floats: DTypeLike) -> Array:
    """Returns the value as an array; a float that has no dtype of its own, in the given one.

    Example:
        >>> [stored(value, "bfloat16").dtype.name for value in (0.1, 1, jnp.float32(0.1))]
        ['bfloat16', 'int32', 'float32']
    """
    array = jnp.asarray(value)
    if has_dtype(value):
        return array
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(value, floats)
    return array.astype(array.dtype)  # without the weak type


def kept_float(value: ArrayLike, given: Any, floats: DTypeLike) -> ArrayLike:
    """Returns the value, as a float where the factory was given one and this is an integer.

    Example:
        >>> print(kept_float(1, 0.1, "float32"), kept_float(1, 3, "float32"))
        1.0 1
    """
    if _is_float(given) and not _is_float(value):
        return jnp.asarray(value, given.dtype if has_dtype(given) else floats)
    return value


def _is_float(value: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _hints(factory: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(factory))
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}  # annotations that exist for a type checker only


def _members(hint: Any) -> set[Any]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return set().union(*(_members(part) for part in typing.get_args(hint)))
    return {hint} if _is_hashable(hint) else {str(hint)}


def _is_hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def _is_numeric(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, _NUMBERS) and not issubclass(hint, bool)
