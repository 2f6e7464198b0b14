"""Losses between embeddings of the same things and of others.

    ntxent               -mean over pairs (i, j) of one label:
                         log( exp(c_ij / T) / (exp(c_ij / T) + sum_k exp(c_ik / T)) ),
                         c the cosine, k the examples of other labels
    triplet_margin_loss  max(0, d(a, p) - d(a, n) + margin)

Chen et al. 2020, arXiv:2002.05709 (NT-Xent), in the form with labels, where only examples of
other labels are negatives. Balntas et al. 2016,
"Learning shallow convolutional feature descriptors with triplet losses".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.errors import LossError
from flaxtrain.losses.inputs import real, same_shape
from flaxtrain.losses.similarity import cosine_similarity
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = ["ntxent", "triplet_margin_loss"]


def ntxent(
    embeddings: ArrayLike, labels: ArrayLike, temperature: ArrayLike = 0.07
) -> Float[Array, ""]:
    """Returns the normalised, temperature-scaled cross-entropy of a batch of embeddings.

    Args:
        embeddings: `[batch, features]`, of any length.
        labels: `[batch]`; examples of equal label are positive pairs.
        temperature: > 0; small values sharpen.

    Returns:
        A scalar: the mean over all ordered positive pairs, 0 when there is none.

    Raises:
        LossError: `embeddings` has no two axes, or `labels` not one entry for each.
        ArgumentError: `temperature` is not above 0.
        ArgumentTypeError: the embeddings are not floating-point numbers.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> print(ntxent(x, jnp.array([0, 0, 1]), temperature=1.0).round(4))
        0.3285
    """
    (embeddings,) = real("ntxent", embeddings=embeddings)
    labels = jnp.asarray(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise LossError(
            f"embeddings have shape {embeddings.shape}, labels {labels.shape}",
            where="ntxent",
            fix="give embeddings [batch, features] and labels [batch]",
        )
    if jnp.ndim(temperature) == 0:
        check_number("temperature", temperature, minimum=0.0, exclude=(0.0,), where="ntxent")
    cosine = cosine_similarity(
        embeddings[None, :, :],
        embeddings[:, None, :],
        epsilon=float(jnp.finfo(embeddings.dtype).eps),
    )
    score = cosine / temperature
    same = labels[:, None] == labels[None, :]
    positive = same & ~jnp.eye(len(labels), dtype=bool)
    # A finite floor: a row without negatives has a derivative too.
    floor = jnp.finfo(score.dtype).min / 2
    negatives = jax.nn.logsumexp(jnp.where(same, floor, score), axis=1, keepdims=True)
    log_p = score - jnp.logaddexp(score, jnp.broadcast_to(negatives, score.shape))
    total = jnp.sum(jnp.where(positive, log_p, 0.0))
    return -total / jnp.maximum(positive.sum(), 1).astype(total.dtype)


def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: ArrayLike = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
) -> Float[Array, "*shape"]:
    """Returns `max(0, d(anchor, positive) - d(anchor, negative) + margin)`.

    The distance is `(sum_i |x_i - y_i|^norm_degree + eps)^(1 / norm_degree)`.

    Args:
        anchors: embeddings along `axis`.
        positives: embeddings that should be near, of the same shape.
        negatives: embeddings that should be far, of the same shape.
        axis: the axis of the features.
        norm_degree: degree of the norm, > 0; 2 is Euclid's.
        margin: how much farther a negative should be.
        eps: keeps the derivative at distance 0 finite, >= 0.

    Returns:
        The loss, without `axis`.

    Raises:
        LossError: the shapes differ.
        ArgumentError: `norm_degree` or `eps` is out of range.
        ArgumentTypeError: an argument is not of floating-point numbers.

    Example:
        >>> anchor, near, far = jnp.array([0.0]), jnp.array([0.1]), jnp.array([0.8])
        >>> print(round(float(triplet_margin_loss(anchor, near, far, eps=0.0)), 4))
        0.3
    """
    name = "triplet_margin_loss"
    anchors, positives, negatives = real(
        name, anchors=anchors, positives=positives, negatives=negatives
    )
    same_shape(name, anchors=anchors, positives=positives, negatives=negatives)
    check_number("norm_degree", norm_degree, minimum=0.0, exclude=(0.0,), where=name)
    check_number("eps", eps, minimum=0.0, where=name)

    def distance(others: Array) -> Array:
        powers = jnp.power(jnp.abs(anchors - others), norm_degree)
        return jnp.power(powers.sum(axis) + eps, 1 / norm_degree)

    return jnp.maximum(distance(positives) - distance(negatives) + margin, 0)
