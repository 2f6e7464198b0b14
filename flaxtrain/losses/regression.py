"""Losses for real-valued targets."""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.errors import LossError
from flaxtrain.typing import Array, Inexact

__all__ = ["absolute_error", "squared_error"]


def squared_error(
    predictions: Inexact[Array, "*shape"], targets: Inexact[Array, "*shape"] | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `(prediction - target)^2`, element by element.

    Args:
        predictions: any shape.
        targets: the same shape, never broadcast; None stands for zeros.

    Raises:
        LossError: the shapes differ (a broadcast `(n,)` against `(n, 1)` is the classic
            mistake).

    Example:
        >>> print(squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        [0. 4.]
    """
    return jnp.square(_difference("squared_error", predictions, targets))


def absolute_error(
    predictions: Inexact[Array, "*shape"], targets: Inexact[Array, "*shape"] | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `|prediction - target|`, element by element.

    Args:
        predictions: any shape.
        targets: the same shape, never broadcast; None stands for zeros.

    Raises:
        LossError: the shapes differ.

    Example:
        >>> print(absolute_error(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])))
        [1. 2.]
    """
    return jnp.abs(_difference("absolute_error", predictions, targets))


def _difference(name: str, predictions: Array, targets: Array | None) -> Array:
    if targets is None:
        return predictions
    if predictions.shape != targets.shape:
        raise LossError(
            f"predictions have shape {predictions.shape}, targets {targets.shape}",
            where=name,
            fix="give both the same shape; nothing is broadcast",
        )
    return predictions - targets
