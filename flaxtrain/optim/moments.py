"""Moving averages of gradients, and their bias correction.

For a decay b, a new value x and t = 1, 2, ... (Kingma & Ba 2014, arXiv:1412.6980, section 3):
    m <- b m + (1 - b) x        correction(t) = 1 - b^t
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number
from flaxtrain.typing import Array, ArrayLike, DTypeLike

__all__ = [
    "Decay",
    "DecayRate",
    "bias_correction",
    "check_decays",
    "check_epsilons",
    "complement",
    "debiased",
    "moving_average",
    "squared_magnitude",
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


def check_decays(*, where: str, **decays: Any) -> None:
    """Refuses decays outside [0, 1); a tracer passes.

    Args:
        where: the function that was called.
        **decays: by the names of the arguments.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> check_decays(b1=0.9, b2=0.999, where="adam")
    """
    for name, b in decays.items():
        check_number(name, value(b), minimum=0.0, maximum=1.0, exclude=(1.0,), where=where)


def check_epsilons(*, where: str, **epsilons: Any) -> None:
    """Refuses negative numbers; a tracer passes.

    Args:
        where: the function that was called.
        **epsilons: by the names of the arguments.

    Raises:
        ArgumentError: a value is negative.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> check_epsilons(eps=1e-8, eps_root=0.0, where="adam")
    """
    for name, epsilon in epsilons.items():
        check_number(name, epsilon, minimum=0.0, where=where)


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
