"""Losses for real-valued targets.

For an error `e = prediction - target`, element by element:

    squared_error   e^2                 l2_loss    e^2 / 2
    absolute_error  |e|                 log_cosh   log cosh e
    huber_loss      e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond

Huber 1964, "Robust estimation of a location parameter". Chen et al. 2019,
"Log hyperbolic cosine loss improves variational auto-encoder".
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.losses.inputs import pair, real, same_shape
from flaxtrain.typing import Array, ArrayLike, Inexact

__all__ = ["absolute_error", "huber_loss", "l2_loss", "log_cosh", "squared_error"]


def squared_error(
    predictions: ArrayLike, targets: ArrayLike | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `(prediction - target)^2`, element by element.

    Args:
        predictions: any shape.
        targets: the same shape, never broadcast; None stands for zeros.

    Raises:
        LossError: the shapes differ (a broadcast `(n,)` against `(n, 1)` is the classic
            mistake).
        ArgumentTypeError: the predictions are not real floating-point numbers.

    Example:
        >>> print(squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        [0. 4.]
    """
    return jnp.square(_same_shape_error("squared_error", predictions, targets))


def absolute_error(
    predictions: ArrayLike, targets: ArrayLike | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `|prediction - target|`, element by element.

    Args:
        predictions: any shape.
        targets: the same shape, never broadcast; None stands for zeros.

    Raises:
        LossError: the shapes differ.
        ArgumentTypeError: the predictions are not real floating-point numbers.

    Example:
        >>> print(absolute_error(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])))
        [1. 2.]
    """
    return jnp.abs(_same_shape_error("absolute_error", predictions, targets))


def l2_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `(prediction - target)^2 / 2`, element by element.

    Args:
        predictions: any shape.
        targets: the same shape, never broadcast; None stands for zeros.

    Raises:
        LossError: the shapes differ.
        ArgumentTypeError: the predictions are not real floating-point numbers.

    Example:
        >>> print(l2_loss(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        [0. 2.]
    """
    return 0.5 * jnp.square(_same_shape_error("l2_loss", predictions, targets))


def huber_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0
) -> Inexact[Array, "*shape"]:
    """Returns Huber's loss: a parabola near zero, a straight line beyond `delta`.

    Its gradient is the error clipped to `[-delta, delta]`.

    Args:
        predictions: any shape.
        targets: the same shape, or one that is broadcast to it; None stands for zeros.
        delta: where the parabola ends, > 0 (a number, or an array of the same shape).

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `delta` is not above 0.
        ArgumentTypeError: the predictions are not real floating-point numbers.

    Example:
        >>> print(huber_loss(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])))
        [0.125 2.5  ]
    """
    if jnp.ndim(delta) == 0:
        check_number("delta", delta, minimum=0.0, exclude=(0.0,), where="huber_loss")
    size = jnp.abs(_error("huber_loss", predictions, targets))
    # min first, the rest by subtraction: at |e| = delta only one branch has a gradient.
    quadratic = jnp.minimum(size, delta)
    return 0.5 * jnp.square(quadratic) + delta * (size - quadratic)


def log_cosh(
    predictions: ArrayLike, targets: ArrayLike | None = None
) -> Inexact[Array, "*shape"]:
    """Returns `log cosh(prediction - target)`, element by element.

    About `e^2 / 2` near zero and `|e| - log 2` far away, smooth everywhere; its gradient is
    `tanh e`.

    Args:
        predictions: any shape.
        targets: the same shape, or one that is broadcast to it; None stands for zeros.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the predictions are not real floating-point numbers.

    Example:
        >>> print(log_cosh(jnp.array([0.0, 100.0])).round(1))
        [ 0.  99.3]
    """
    error = _error("log_cosh", predictions, targets)
    # cosh e itself overflows at 90; the sum of its two exponentials in log space does not.
    return jnp.logaddexp(error, -error) - jnp.log(2.0).astype(error.dtype)


def _error(name: str, predictions: ArrayLike, targets: ArrayLike | None) -> Array:
    (predictions,) = real(name, predictions=predictions)
    if targets is None:
        return predictions
    predictions, targets = pair(name, predictions=predictions, targets=targets)
    return predictions - targets


def _same_shape_error(name: str, predictions: ArrayLike, targets: ArrayLike | None) -> Array:
    (predictions,) = real(name, predictions=predictions)
    if targets is None:
        return predictions
    targets = jnp.asarray(targets)
    same_shape(name, predictions=predictions, targets=targets)
    return predictions - targets
