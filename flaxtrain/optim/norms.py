"""Norms with a floor, whose gradients are right where the array is zero.

`max(|x|, floor)` has the gradient NaN at x = 0 in reverse mode: the derivative of the root is
infinite there, and is multiplied by zero. Here the root is never taken of what is below the
floor, so the gradient there is 0, that of the constant.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.typing import Array, ArrayLike

__all__ = ["safe_norm", "safe_root_mean_squares"]


def safe_norm(
    x: ArrayLike,
    min_norm: ArrayLike,
    ord: int | float | str | None = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> Array:
    """Returns `max(|x|, min_norm)`, with the gradient 0 where `min_norm` is the larger one.

    Args:
        x: an array of any shape, real or complex.
        min_norm: the smallest value returned, >= 0.
        ord: which norm, as in `jnp.linalg.norm`; None: the root of the sum of squares.
        axis: the axes that are summed over; two axes with an `ord` hold matrices. None: all.
        keepdims: leave summed axes in the result, with size one.

    Example:
        >>> import jax
        >>> print(safe_norm(jnp.array([3.0, 4.0]), 1.0), safe_norm(jnp.zeros(2), 1.0))
        5.0 1.0
        >>> print(jax.grad(safe_norm)(jnp.zeros(2), 0.0))
        [0. 0.]
    """

    def norm(x: Array) -> Array:
        return jnp.linalg.norm(x, ord=ord, axis=axis, keepdims=True)

    floored = _floored(norm, jnp.asarray(x), min_norm)
    return floored if keepdims else jnp.squeeze(floored, axis=axis)


def safe_root_mean_squares(x: ArrayLike, min_rms: ArrayLike) -> Array:
    """Returns `max(sqrt(mean(|x|^2)), min_rms)`, with the gradient 0 below `min_rms`.

    Args:
        x: an array of any shape, real or complex.
        min_rms: the smallest value returned, >= 0.

    Example:
        >>> import jax
        >>> print(safe_root_mean_squares(jnp.array([1.0, 7.0]), 1e-3))
        5.0
        >>> print(jax.grad(safe_root_mean_squares)(jnp.zeros(2), 1e-3))
        [0. 0.]
    """
    return _floored(_root_mean_square, jnp.asarray(x), min_rms)


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(squared_magnitude(x)))


def _floored(size: Callable[[Array], Array], x: Array, floor: ArrayLike) -> Array:
    is_below = size(x) <= floor
    # Where the floor wins, the size is taken of ones: finite, with a finite derivative.
    return jnp.where(is_below, floor, size(jnp.where(is_below, jnp.ones_like(x), x)))
