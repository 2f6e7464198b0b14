"""Rows that don't count: padding, and examples that the batch itself masks or weighs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.data.inputs import example_weights
from flaxtrain.errors import BatchError
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["row_weights"]


def row_weights(
    batch: Batch, mask: ArrayLike | None
) -> tuple[Batch, Array | None, Array | None]:
    """Joins the padding mask with the batch's own `mask` and `weight` entries.

    Args:
        batch: the batch; every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding; None for a full batch.

    Returns:
        The batch, with a real row in place of rows that don't count (a NaN there would reach
        the gradient even at weight 0, and so would an id out of range, or the norm of a row of
        zeros); the bool mask of rows that count; the float weight of each row. Both are None
        when every row counts once.
    """
    rows = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1 or None in rows:
        raise BatchError(
            f"the leaves of the batch have leading axes {sorted(map(str, rows))}",
            where="batch",
            fix="give every leaf the same leading batch axis",
        )
    weight = example_weights(batch)
    if mask is None and weight is None:
        return batch, None, None
    joined = jnp.ones((), jnp.float32) if weight is None else jnp.asarray(weight)
    if not jnp.issubdtype(joined.dtype, jnp.floating):
        joined = joined.astype(jnp.float32)
    if mask is not None:
        joined = jnp.where(jnp.asarray(mask), joined, jnp.zeros((), joined.dtype))
    counts = joined != 0
    return jax.tree.map(lambda leaf: _kept(leaf, counts), batch), counts, joined


def _kept(leaf: Array, counts: Array) -> Array:
    selector = counts.reshape(counts.shape + (1,) * (leaf.ndim - 1))
    real = jax.lax.dynamic_index_in_dim(jnp.asarray(leaf), jnp.argmax(counts), keepdims=True)
    return jnp.where(selector, leaf, jnp.broadcast_to(real, leaf.shape))
