"""Losses of an order among the items of a list.

    ranking_softmax_loss   -sum_i y_i log softmax(s)_i      relevance y_i, score s_i

Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach" (ListNet's
top-one loss, with relevances that are not normalised).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxtrain.losses.inputs import pair, real, selection, weighted
from flaxtrain.typing import Array, ArrayLike, Float

__all__ = ["ranking_softmax_loss"]


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., ArrayLike] | None = jnp.mean,
) -> Float[Array, "*shape"]:
    """Returns the cross-entropy between scores and relevances of lists of items.

    Args:
        logits: scores of the items, `[..., items]`.
        labels: relevance of every item, >= 0, of the same shape.
        where: the valid items, of the same shape; padding takes no part.
        weights: a factor for every item's relevance, of the same shape or broadcast to it.
        reduce_fn: `jnp.mean` or `jnp.sum` over the lists that have a valid item (called with
            `where=`), or None for one value per list.

    Returns:
        A scalar, or `[...]` without a reduction. A mean over no list at all is 0.

    Raises:
        LossError: the shapes don't fit.
        ArgumentTypeError: the scores are not floating-point numbers.

    Example:
        >>> loss = ranking_softmax_loss(jnp.array([2.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 0.0]))
        >>> print(round(float(loss), 4))
        1.4076
    """
    name = "ranking_softmax_loss"
    (logits,) = real(name, logits=logits)
    logits, labels = pair(name, logits=logits, labels=labels)
    labels = labels.astype(logits.dtype)
    if weights is not None:
        logits, factors = pair(name, logits=logits, weights=weights)
        labels = jnp.broadcast_to(labels, logits.shape) * factors
    where = selection(name, where, logits)
    if where is None:
        lists = None
    else:
        lists = where.any(axis=-1)
        # Padding has probability 0. A list of nothing else is any list, and is not counted.
        kept = where | ~lists[..., None]
        labels = jnp.where(where, labels, 0.0)
        logits = jnp.where(kept, jnp.where(where, logits, 0.0), -jnp.inf)
    loss = -jnp.sum(weighted(labels, jax.nn.log_softmax(logits, axis=-1)), axis=-1)
    if lists is None:
        return loss if reduce_fn is None else jnp.asarray(reduce_fn(loss, where=None))
    if reduce_fn is None:
        return jnp.where(lists, loss, 0.0)
    reduced = jnp.asarray(reduce_fn(loss, where=lists))
    return jnp.where(lists.any(), reduced, 0.0) if reduce_fn is jnp.mean else reduced
