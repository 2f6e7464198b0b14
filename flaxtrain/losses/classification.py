"""Losses for class labels and class probabilities.

For logits `s`, `p = softmax(s)`, targets `y` (a distribution, or the index of one class):

    softmax_cross_entropy        -sum_i y_i log p_i
    sigmoid_binary_cross_entropy -y log sigmoid(s) - (1 - y) log sigmoid(-s)
    sigmoid_focal_loss           alpha_y (1 - p_y)^gamma times the line above
    poly_loss_cross_entropy      cross-entropy + epsilon sum_i y_i (1 - p_i)

Lin et al. 2017, arXiv:1708.02002 (focal). Leng et al. 2022, arXiv:2204.12511 (Poly-1). Mueller
et al. 2019, arXiv:1906.02629 (label smoothing). Everywhere `0 log 0 = 0`: a class of
probability zero that no target asks for costs nothing.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentError, LossError
from flaxtrain.losses.inputs import (
    Axes,
    class_indices,
    known_label,
    pair,
    real,
    selection,
    weighted,
)
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = [
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `-sum_i label_i log softmax(logits)_i`.

    A logit of `-inf` whose label is 0 costs nothing and has gradient 0.

    Args:
        logits: unnormalised log-probabilities, with the classes on `axis`.
        labels: a distribution over the classes (one-hot, smoothed, a teacher's), of the shape
            of `logits` or broadcast to it.
        axis: the axis or axes of the classes; None for all.
        where: classes that take part, of the shape of `logits` or without `axis`.

    Returns:
        The cross-entropy in nats, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> logits = jnp.array([[2.0, 0.0, -jnp.inf]])
        >>> print(softmax_cross_entropy(logits, jnp.array([[0.0, 1.0, 0.0]])).round(4))
        [2.1269]
    """
    name = "softmax_cross_entropy"
    (logits,) = real(name, logits=logits)
    logits, labels = pair(name, logits=logits, labels=labels)
    where = selection(name, where, logits, axis)
    log_p = jax.nn.log_softmax(logits, axis, where)
    return -weighted(labels.astype(jnp.result_type(labels, log_p)), log_p).sum(
        axis, where=where
    )


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Returns `softmax_cross_entropy(logits, labels)`, which is safe here already.

    Args:
        logits: unnormalised log-probabilities, `[..., classes]`; `-inf` marks a class that is
            out.
        labels: a distribution over the classes, of that shape or broadcast to it.

    Returns:
        The cross-entropy in nats, `[...]`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> loss = safe_softmax_cross_entropy(
        ...     jnp.array([-jnp.inf, 1.0]), jnp.array([0.0, 1.0])
        ... )
        >>> print(abs(float(loss)))
        0.0
    """
    return softmax_cross_entropy(logits, labels)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `-log softmax(logits)[label]` for every example.

    Args:
        logits: unnormalised log-probabilities, with the classes on `axis`.
        labels: the index of the true class, in `[0, classes)`. A label outside gives NaN, which
            the training step treats as a bad batch, never as another class.
        axis: the axis of the classes; several axes count as one, flattened in the order given.
        where: classes that take part, of the shape of `logits` or of `labels`; the others have
            probability 0. An example without any class costs 0.

    Returns:
        The loss in nats, of the shape of `labels` and the dtype of `logits`.

    Raises:
        LossError: `labels` is not one index for every example.
        ArgumentTypeError: the logits are not floating-point numbers, or the labels no integers.

    Example:
        >>> logits, labels = jnp.array([[0.0, 0.0]]), jnp.array([1])
        >>> loss = softmax_cross_entropy_with_integer_labels(logits, labels)
        >>> print(round(float(loss[0]), 6))
        0.693147
    """
    name = "softmax_cross_entropy_with_integer_labels"
    (logits,) = real(name, logits=logits)
    labels = class_indices(
        name, labels, fix="pass class indices, or softmax_cross_entropy for distributions"
    )
    where = selection(name, where, logits, axis)
    logits = _classes_last(name, logits, axis)
    if labels.shape != logits.shape[:-1]:
        raise LossError(
            f"labels have shape {labels.shape}, logits {logits.shape} with the classes last",
            where=name,
            fix=f"give one class index for every example: shape {logits.shape[:-1]}",
        )
    index, known = known_label(labels, logits.shape[-1])
    label_logit = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
    if where is None:
        loss = jax.nn.logsumexp(logits, axis=-1) - label_logit
    else:
        where = _classes_last(name, where, axis)
        some = where.any(axis=-1)
        # An example without classes is computed with all of them: log 0 has no gradient.
        log_normaliser = jax.nn.logsumexp(logits, axis=-1, where=where | ~some[..., None])
        loss = jnp.where(some, log_normaliser - label_logit, 0.0)
    return jnp.where(known, loss, jnp.nan).astype(logits.dtype)


def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike
) -> Float[Array, "*shape"]:
    """Returns `-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))`, element by element.

    Args:
        logits: log-odds, any shape; every element is a decision of its own.
        labels: 0, 1, or the probability of 1, of that shape or broadcast to it.

    Returns:
        The loss in nats, of the shape and dtype of `logits`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> loss = sigmoid_binary_cross_entropy(jnp.array([0.0, 1e4]), jnp.array([1, 0]))
        >>> print(loss.round(4))
        [6.931e-01 1.000e+04]
    """
    name = "sigmoid_binary_cross_entropy"
    (logits,) = real(name, logits=logits)
    logits, labels = pair(name, logits=logits, labels=labels)
    labels = labels.astype(logits.dtype)
    # log(1 - sigmoid(s)) = log sigmoid(-s), which does not cancel.
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -weighted(labels, log_p) - weighted(1.0 - labels, log_not_p)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Float[Array, "*shape"]:
    """Returns the focal loss: cross-entropy times `(1 - p_y)^gamma`, element by element.

    Examples that are classified well weigh little. `p_y` is the probability of the label, and
    for labels between 0 and 1 `1 - p_y = y (1 - p) + (1 - y) p`.

    Args:
        logits: log-odds, any shape.
        labels: 0, 1, or values between, of that shape or broadcast to it.
        alpha: weight of label 1, in [0, 1]; label 0 has `1 - alpha`. None: both weigh 1.
        gamma: the exponent, >= 0; 0 is plain cross-entropy.

    Returns:
        The loss in nats, of the shape of `logits`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentError: `alpha` or `gamma` is out of range.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> loss = sigmoid_focal_loss(jnp.array([0.0, 4.0]), jnp.array([1, 1]))
        >>> print(loss.round(4))
        [0.1733 0.    ]

    Source: Lin et al. 2017, arXiv:1708.02002, equation 5.
    """
    name = "sigmoid_focal_loss"
    (logits,) = real(name, logits=logits)
    logits, labels = pair(name, logits=logits, labels=labels)
    labels = labels.astype(logits.dtype)
    if jnp.ndim(gamma) == 0:
        check_number("gamma", gamma, minimum=0.0, where=name)
    # Infinite logits count as the largest ones: log 0 has no derivative.
    bounded = jnp.clip(logits, -jnp.finfo(logits.dtype).max, jnp.finfo(logits.dtype).max)
    log_p, log_not_p = jax.nn.log_sigmoid(bounded), jax.nn.log_sigmoid(-bounded)
    # In log space, where 1 - p_y of a confident example does not round to 0 too early.
    log_miss = jax.nn.logsumexp(
        jnp.stack([log_p, log_not_p]), axis=0, b=jnp.stack([1.0 - labels, labels])
    )
    cross_entropy = sigmoid_binary_cross_entropy(logits, labels)
    loss = weighted(cross_entropy, jnp.exp(gamma * log_miss))
    if alpha is None:
        return loss
    if jnp.ndim(alpha) == 0:
        check_number("alpha", alpha, minimum=0.0, maximum=1.0, where=name)
    alpha = jnp.asarray(alpha, loss.dtype)
    return (alpha * labels + (1.0 - alpha) * (1.0 - labels)) * loss


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns Poly-1: cross-entropy plus `epsilon sum_i label_i (1 - p_i)`.

    Args:
        logits: unnormalised log-probabilities, with the classes on `axis`.
        labels: a distribution over the classes, of that shape or broadcast to it.
        epsilon: the first polynomial coefficient, >= -1 keeps the loss a decreasing function of
            the label's probability. The paper: 2 for image classification, -1 for detection.
        axis: the axis or axes of the classes; None for all.
        where: classes that take part, of the shape of `logits` or without `axis`.

    Returns:
        The loss, without `axis`.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the logits are not floating-point numbers.

    Example:
        >>> loss = poly_loss_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]))
        >>> print(loss.round(4))
        1.6931

    Source: Leng et al. 2022, arXiv:2204.12511, equation 4.
    """
    name = "poly_loss_cross_entropy"
    (logits,) = real(name, logits=logits)
    logits, labels = pair(name, logits=logits, labels=labels)
    where = selection(name, where, logits, axis)
    miss = labels * (1 - jax.nn.softmax(logits, axis=axis, where=where))
    cross_entropy = softmax_cross_entropy(logits, labels, axis, where)
    return cross_entropy + epsilon * miss.sum(axis, where=where)


def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Returns `(1 - alpha) labels + alpha / classes`.

    Args:
        labels: one-hot labels or distributions, with the classes on `axis`.
        alpha: how much probability is spread over all classes, in [0, 1].
        axis: the axis or axes of the classes; None for all.
        where: classes that count, of the shape of `labels`. The value at the others is of no
            use.

    Returns:
        Distributions of the shape of `labels`.

    Raises:
        ArgumentError: `alpha` is out of range.
        ArgumentTypeError: the labels are not floating-point numbers.

    Example:
        >>> print(smooth_labels(jnp.array([0.0, 1.0]), 0.1))
        [0.05 0.95]
    """
    (labels,) = real("smooth_labels", labels=labels)
    if jnp.ndim(alpha) == 0:
        check_number("alpha", alpha, minimum=0.0, maximum=1.0, where="smooth_labels")
    where = selection("smooth_labels", where, labels)
    if where is None:
        axes = (
            range(labels.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        )
        classes = math.prod(labels.shape[i] for i in axes)
    else:
        # A row without classes has nothing to spread over.
        classes = jnp.maximum(where.sum(axis, keepdims=True), 1)
    alpha = jnp.asarray(alpha, labels.dtype)
    return (1.0 - alpha) * labels + alpha / classes


def _classes_last(name: str, array: Array, axis: int | tuple[int, ...]) -> Array:
    """Moves the axes of the classes to the end, and makes one of several."""
    axes = (axis,) if isinstance(axis, int) else axis
    if not isinstance(axes, tuple) or any(not -array.ndim <= i < array.ndim for i in axes):
        raise ArgumentError(
            f"axis={axis!r} does not name axes of an array of shape {array.shape}",
            where=name,
            fix=f"pass an integer in [{-array.ndim}, {array.ndim}), or a tuple of them",
        )
    order = [i % array.ndim for i in axes]
    batch = [i for i in range(array.ndim) if i not in order]
    moved = array.transpose(*batch, *order)
    return moved.reshape(*(array.shape[i] for i in batch), -1)
