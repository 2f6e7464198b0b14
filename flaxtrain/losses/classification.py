"""Losses for class labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.typing import Array, Bool, Float, Int

__all__ = ["softmax_cross_entropy_with_integer_labels"]


def softmax_cross_entropy_with_integer_labels(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    axis: int = -1,
    where: Bool[Array, "*batch classes"] | None = None,
) -> Float[Array, "*batch"]:
    """Returns `-log softmax(logits)[label]` for every example.

    Args:
        logits: unnormalised log-probabilities, with the classes on `axis`.
        labels: the index of the true class, in `[0, classes)`. A label outside gives NaN, which
            the training step treats as a bad batch, never as another class.
        axis: the axis of the classes.
        where: classes that take part; the others have probability 0.

    Returns:
        The loss in nats, of the shape of `labels` and the dtype of `logits`.

    Example:
        >>> logits, labels = jnp.array([[0.0, 0.0]]), jnp.array([1])
        >>> loss = softmax_cross_entropy_with_integer_labels(logits, labels)
        >>> print(round(float(loss[0]), 6))
        0.693147
    """
    classes = logits.shape[axis]
    log_normaliser = jax.nn.logsumexp(logits, axis=axis, where=where)
    index = jnp.expand_dims(jnp.where((labels >= 0) & (labels < classes), labels, 0), axis)
    label_logit = jnp.take_along_axis(logits, index, axis=axis).squeeze(axis)
    known = (labels >= 0) & (labels < classes)
    return jnp.where(known, log_normaliser - label_logit, jnp.nan).astype(logits.dtype)
