"""Losses of the angle between two vectors.

cosine_similarity  a . b / (|a| |b|)        cosine_distance  1 - a . b / (|a| |b|)
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.losses.inputs import Axes, pair, real, selection
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = ["cosine_distance", "cosine_similarity"]


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns the cosine of the angle between two vectors, in [-1, 1].

    A vector of length zero has no angle: its similarity is 0, with a finite gradient.

    Args:
        predictions: vectors along `axis`.
        targets: vectors of the same shape, or broadcast to it.
        epsilon: least *squared* length that is divided by, >= 0.
        axis: the axis or axes of the vectors; None for all.
        where: entries that take part.

    Returns:
        The similarity, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `epsilon` is negative.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> print(cosine_similarity(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])).round(4))
        0.7071
    """
    name = "cosine_similarity"
    a, b = real(name, predictions=predictions, targets=targets)
    a, b = pair(name, predictions=a, targets=b)
    if jnp.ndim(epsilon) == 0:
        check_number("epsilon", epsilon, minimum=0.0, where=name)
    where = selection(name, where, a, axis)
    return jnp.sum(
        _unit(a, epsilon, axis, where) * _unit(b, epsilon, axis, where), axis=axis, where=where
    )


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `1 - cosine_similarity`, in [0, 2].

    Args:
        predictions: vectors along `axis`.
        targets: vectors of the same shape, or broadcast to it.
        epsilon: least *squared* length that is divided by, >= 0.
        axis: the axis or axes of the vectors; None for all.
        where: entries that take part.

    Returns:
        The distance, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `epsilon` is negative.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> print(cosine_distance(jnp.array([1.0, 0.0]), jnp.array([-3.0, 0.0])))
        2.0
    """
    return 1.0 - cosine_similarity(
        predictions, targets, epsilon=epsilon, axis=axis, where=where
    )


def _unit(vector: Array, epsilon: ArrayLike, axis: Axes, where: Array | None) -> Array:
    squared = jnp.sum(jnp.square(vector), axis=axis, where=where, keepdims=True)
    squared = jnp.maximum(squared, epsilon)
    # The square root of 0 has no derivative; such a vector is 0 divided by 1.
    length = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    return vector / length
