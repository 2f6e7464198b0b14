"""Divergences between distributions, the prediction given by its logarithm.

For targets `t` and predictions `q` on one axis:

    kl_divergence              sum_i t_i (log t_i - log q_i)
    generalized_kl_divergence  the same + sum_i (q_i - t_i), for measures that don't sum to 1

Kullback & Leibler 1951, "On information and sufficiency"; Bregman 1967. Everywhere
`0 log 0 = 0`, and what has target 0 has no gradient through the logarithm.
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.losses.inputs import Axes, pair, real, selection, weighted
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
]


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `sum_i t_i (log t_i - log q_i)`.

    Args:
        log_predictions: logarithms of the predicted probabilities.
        targets: target probabilities, >= 0, of that shape or broadcast to it.
        axis: the axis or axes of the distributions; None for all.
        where: entries that take part.

    Returns:
        The divergence in nats, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> print(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0])).round(4))
        0.6931
    """
    log_q, targets = _arguments("kl_divergence", log_predictions, targets)
    where = selection("kl_divergence", where, log_q, axis)
    # The inner where is for the derivative: log'(0) * 0 is NaN.
    positive = targets != 0
    log_t = jnp.log(jnp.where(positive, targets, 1.0))
    return jnp.sum(weighted(targets, log_t - log_q), axis=axis, where=where)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `kl_divergence` for targets given by their logarithms.

    Args:
        log_predictions: logarithms of the predicted probabilities.
        log_targets: logarithms of the target probabilities, `-inf` for 0.
        axis: the axis or axes of the distributions; None for all.
        where: entries that take part.

    Returns:
        The divergence in nats, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> q, t = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
        >>> print(kl_divergence_with_log_targets(q, t).round(4))
        0.6931
    """
    name = "kl_divergence_with_log_targets"
    log_q, log_t = _arguments(name, log_predictions, log_targets)
    where = selection(name, where, log_q, axis)
    positive = log_t != -jnp.inf
    finite = jnp.where(positive, log_t, 0.0)
    terms = jnp.where(positive, jnp.exp(finite) * (finite - log_q), 0.0)
    return jnp.sum(terms, axis=axis, where=where)


def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `sum_i t_i (log t_i - log q_i) + q_i - t_i`, the Bregman divergence of `x log x`.

    Zero only where both are equal, also for measures that don't sum to 1.

    Args:
        log_predictions: logarithms of the predicted measure.
        targets: the target measure, >= 0, of that shape or broadcast to it.
        axis: the axis or axes of the measures; None for all.
        where: entries that take part.

    Returns:
        The divergence, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> q, t = jnp.log(jnp.array([2.0])), jnp.array([1.0])
        >>> print(round(float(generalized_kl_divergence(q, t)), 4))
        0.3069
    """
    name = "generalized_kl_divergence"
    log_q, targets = _arguments(name, log_predictions, targets)
    where = selection(name, where, log_q, axis)
    excess = jnp.sum(jnp.exp(log_q) - targets, axis=axis, where=where)
    return kl_divergence(log_q, targets, axis, where) + excess


def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `generalized_kl_divergence`, whose older name this is.

    Args:
        log_predictions: logarithms of the predicted measure.
        targets: the target measure, >= 0, of that shape or broadcast to it.
        axis: the axis or axes of the measures; None for all.
        where: entries that take part.

    Returns:
        The divergence, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> print(convex_kl_divergence(jnp.log(jnp.array([2.0])), jnp.array([1.0])).round(4))
        0.3069
    """
    return generalized_kl_divergence(log_predictions, targets, axis, where)


def _arguments(
    name: str, log_predictions: ArrayLike, targets: ArrayLike
) -> tuple[Array, Array]:
    log_q, targets = real(name, log_predictions=log_predictions, targets=targets)
    return pair(name, log_predictions=log_q, targets=targets)
