"""Checks of arguments: their names, and the range of their concrete values.

Factories are also called with tracers (`vmap` over a learning rate): a value that is not known
yet passes, everything else is judged at construction.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxtrain.errors import ArgumentError, ArgumentTypeError, nearest, unknown_name

__all__ = [
    "answering",
    "answering_class",
    "answering_with",
    "check_choice",
    "check_flag",
    "check_instance",
    "check_integer",
    "check_number",
    "floating_dtype",
    "is_concrete",
]

P = ParamSpec("P")
T = TypeVar("T")


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
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ArgumentTypeError(
            f"{said} is a {type(value).__name__}, not {article} {kind.__name__}",
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
            f"{name}={value!r} is a {type(value).__name__}, not a string",
            where=where,
            fix=f"pass one of {', '.join(choices)}",
        )
    if value not in choices:
        raise unknown_name(name, value, choices, where=where)


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
