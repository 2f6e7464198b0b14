"""Moving averages of gradients, their bias correction, and how they are stored.

For a decay b, a new value x and t = 1, 2, ... (Kingma & Ba 2014, arXiv:1412.6980, section 3):
    m <- b m + (1 - b) x        correction(t) = 1 - b^t
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.typing import Array, ArrayLike, DTypeLike

__all__ = [
    "Decay",
    "DecayRate",
    "bias_correction",
    "check_dtype",
    "complement",
    "debiased",
    "moving_average",
    "squared_magnitude",
    "stored_dtype",
    "value",
]


class DecayRate(NamedTuple):
    """A decay b that is an array, together with 1 - b.

    In float32, `1 - 0.999` is off by 1e-5 of itself. Where b is a Python number the difference
    is formed in float64; where b must be an array (edited or scheduled without recompiling) the
    difference has to travel with it.

    Example:
        >>> rate = DecayRate.of(0.999)
        >>> print(rate.complement, 1 - rate.value)
        0.001 0.0009999871
    """

    value: Array
    complement: Array

    @classmethod
    def of(cls, b: float, dtype: DTypeLike = np.float32) -> DecayRate:
        """Returns the pair for a Python number; the difference is taken in float64."""
        return cls(jnp.asarray(b, dtype), jnp.asarray(1.0 - b, dtype))


Decay: TypeAlias = ArrayLike | DecayRate
"""The decay of a moving average: a Python number, an array or tracer, or a `DecayRate`."""


def moving_average(b: Decay, new: Array, old: Array) -> Array:
    """Returns `b * old + (1 - b) * new`.

    Example:
        >>> print(moving_average(0.75, jnp.float32(4.0), jnp.float32(8.0)))
        7.0
    """
    return complement(b) * new + value(b) * old


def bias_correction(b: Decay, t: Array) -> Array:
    """Returns `1 - b^t`: the total weight of `t` values in an average that started at zero.

    Example:
        >>> print(bias_correction(0.5, jnp.int32(2)))
        0.75
    """
    return _correction(value(b), t)


# Compiled also in eager mode: at t = 1 and b = 0.999, one unit in the last place of b^t is 6e-5
# of the result, and eager and compiled powers differ by that much.
@partial(jax.jit, inline=True)
def _correction(b: Any, t: Array) -> Array:
    return 1 - b**t


def debiased(average: Array, correction: Array) -> Array:
    """Returns `average / correction` in the dtype of the average.

    Example:
        >>> debiased(jnp.ones(1, jnp.bfloat16), jnp.float32(0.5))
        Array([2], dtype=bfloat16)
    """
    return average / correction.astype(average.dtype)


def squared_magnitude(array: Array) -> Array:
    """Returns `|x|^2` of every entry, real also for complex entries.

    Example:
        >>> print(squared_magnitude(jnp.array([3.0 + 4.0j])))
        [25.]
    """
    if jnp.iscomplexobj(array):
        return (jnp.conj(array) * array).real
    return jnp.square(array)


def stored_dtype(array: Array, dtype: DTypeLike | None) -> DTypeLike:
    """Returns the dtype in which a slot is stored: the array's own where `dtype` is None.

    A complex slot stays complex, with at least the precision of `dtype`; integers stay as they
    are.

    Example:
        >>> print(stored_dtype(jnp.ones(1), jnp.bfloat16), stored_dtype(jnp.ones(1), None))
        bfloat16 float32
        >>> print(stored_dtype(jnp.ones(1, jnp.complex64), jnp.bfloat16))
        complex64
    """
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.dtype
    if jnp.iscomplexobj(array):
        return jnp.promote_types(dtype, jnp.complex64)
    return jnp.dtype(dtype)


def check_dtype(
    name: str, dtype: Any, *, where: str, instead_of: Any = None
) -> np.dtype[Any] | None:
    """Returns the dtype that jax will use for `dtype`; None stays None.

    Args:
        name: the argument's name, for the message.
        dtype: a float dtype, its name, or None.
        where: the function that was called.
        instead_of: another argument for a dtype that excludes this one.

    Raises:
        ArgumentTypeError: it is not a floating or complex dtype.
        ArgumentError: both dtypes are given.

    Example:
        >>> check_dtype("mu_dtype", "bfloat16", where="adam")
        dtype(bfloat16)
    """
    if dtype is None:
        return None
    if instead_of is not None:
        raise ArgumentError(
            f"{name}={dtype!r} and {instead_of!r} both say how slots are stored",
            where=where,
            fix=f"pass {name} only",
        )
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise ArgumentTypeError(
            f"{name}={dtype!r} is not a floating dtype",
            where=where,
            fix='pass a dtype such as jnp.float32 or "bfloat16"',
        )
    return jax.dtypes.canonicalize_dtype(found)


def value(b: Decay) -> Any:
    """Returns b itself.

    Example:
        >>> value(0.9)
        0.9
    """
    return b.value if isinstance(b, DecayRate) else b


def complement(b: Decay) -> Any:
    """Returns 1 - b, formed in float64 where b is a Python number or a `DecayRate`.

    Example:
        >>> complement(0.75)
        0.25
    """
    return b.complement if isinstance(b, DecayRate) else 1 - b
