"""Which arguments of a factory are hyperparameters: numbers that may change during a run."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Union

import jax
import numpy as np

__all__ = ["is_number", "may_be_scheduled"]

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
