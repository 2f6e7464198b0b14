"""Calls that do not bind: the error names the nearest argument, or the call that takes it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

from flaxtrain.errors import ArgumentTypeError, nearest

__all__ = ["answering", "answering_class", "answering_with"]

P = ParamSpec("P")
T = TypeVar("T")


def answering(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function so that a call that does not bind names the nearest valid argument.

    Raises:
        ArgumentTypeError: (from the decorated function) the call does not bind.

    Example:
        >>> @answering
        ... def power(base: float, exponent: float = 2.0) -> float:
        ...     return base**exponent
        >>> power(3.0)
        9.0
        >>> power(3.0, exponnt=1.0)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ArgumentTypeError: got an unexpected keyword argument 'exponnt'
    """
    return _answered(function, {})


def answering_with(**elsewhere: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns `answering` for a function some of whose arguments are looked for in vain.

    Args:
        **elsewhere: such arguments, and the call that takes them.
    """

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        return _answered(function, elsewhere)

    return decorated


def answering_class(**elsewhere: str) -> Callable[[type[T]], type[T]]:
    """Decorates a class so that its constructor and its public methods are `answering`.

    Args:
        **elsewhere: as for `answering_with`.

    Example:
        >>> @answering_class(momentum="Sgd(momentum=...)")
        ... class Adam:
        ...     def __init__(self, b1: float = 0.9) -> None:
        ...         self.b1 = b1
        >>> try:
        ...     Adam(momentum=0.9)
        ... except ArgumentTypeError as error:
        ...     print(error)
        momentum= is no argument of Adam
          where: Adam
          fix:   pass it as Sgd(momentum=...)
    """

    def decorated(cls: type[T]) -> type[T]:
        for name, function in list(vars(cls).items()):
            is_public = name == "__init__" or not name.startswith("_")
            if is_public and isinstance(function, FunctionType):
                setattr(cls, name, _answered(function, elsewhere))
        return cls

    return decorated


def _answered(function: Callable[P, T], elsewhere: Mapping[str, str]) -> Callable[P, T]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except TypeError:
            # Only now, so that calls that bind cost nothing more.
            try:
                signature.bind(*args, **kwargs)
            except TypeError as reason:
                unbound = reason
            else:
                raise
        # The error of a constructor names the class.
        is_constructor = function.__name__ == "__init__"
        name = type(args[0]).__name__ if is_constructor else function.__name__
        raise _does_not_bind(name, signature, kwargs, unbound, elsewhere) from None

    return call


def _does_not_bind(
    name: str,
    signature: inspect.Signature,
    kwargs: Mapping[str, Any],
    error: TypeError,
    elsewhere: Mapping[str, str],
) -> ArgumentTypeError:
    parameters = signature.parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    wrong = [key for key in kwargs if key not in signature.parameters and not takes_any]
    if wrong and wrong[0] in elsewhere:
        return ArgumentTypeError(
            f"{wrong[0]}= is no argument of {name}",
            where=name,
            fix=f"pass it as {elsewhere[wrong[0]]}",
        )
    # Python complains first of a missing argument, also where it is the misspelt one.
    found = f"got an unexpected keyword argument {wrong[0]!r}" if wrong else str(error)
    guess = nearest(wrong[0], signature.parameters) if wrong else []
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    known = ", ".join(name for name in signature.parameters if name != "self")
    return ArgumentTypeError(found, where=name, fix=f"{hint}Arguments: {known}")
