"""Rows that don't count: padding, and examples that the batch itself masks or weighs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.data.inputs import example_weights
from flaxtrain.errors import BatchError
from flaxtrain.train.replicas import ONE_PROGRAM, Replicas
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["Rows"]


class Rows(NamedTuple):
    """A batch, or a part of one.

    Attributes:
        batch: every leaf `[rows, ...]`.
        real: bool `[rows]`, the rows that count; None where all do.
        weight: float `[rows]`, the weight of each row; None where all are 1.
    """

    batch: Batch
    real: Array | None = None
    weight: Array | None = None

    @classmethod
    def of(cls, batch: Batch, mask: ArrayLike | None, replicas: Replicas = ONE_PROGRAM) -> Rows:
        """Joins the padding mask with the batch's own `mask` and `weight` entries.

        In place of rows that don't count stands a real one. A NaN there would reach the
        gradient even at weight 0, and so would an id out of range, or the norm of a row of
        zeros.

        Args:
            batch: the batch; every leaf `[rows, ...]`.
            mask: bool `[rows]`, False for padding; None for a full batch.
            replicas: which have the other rows; one that has no real row takes that of another.

        Raises:
            BatchError: the leaves differ in their leading axes.

        Example:
            >>> rows = Rows.of({"x": jnp.array([2.0, jnp.nan])}, jnp.array([True, False]))
            >>> print(rows.batch["x"], rows.weight, rows.examples)
            [2. 2.] [1. 0.] 1
        """
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
        if len(lengths) != 1 or None in lengths:
            raise BatchError(
                f"the leaves of the batch have leading axes {sorted(map(str, lengths))}",
                where="batch",
                fix="give every leaf the same leading batch axis",
            )
        weight = example_weights(batch)
        if mask is None and weight is None:
            return cls(batch)
        joined = jnp.ones((), jnp.float32) if weight is None else jnp.asarray(weight)
        if not jnp.issubdtype(joined.dtype, jnp.floating):
            joined = joined.astype(jnp.float32)
        if mask is not None:
            joined = jnp.where(jnp.asarray(mask), joined, jnp.zeros((), joined.dtype))
        counts = joined != 0
        first_row = replicas.first_row(counts)

        def kept(leaf: Array) -> Array:
            selector = counts.reshape(counts.shape + (1,) * (leaf.ndim - 1))
            return jnp.where(selector, leaf, jnp.broadcast_to(first_row(leaf), leaf.shape))

        return cls(jax.tree.map(kept, batch), counts, joined)

    @property
    def examples(self) -> Array:
        """The number of rows that count, an int32 scalar."""
        if self.real is None:
            return jnp.asarray(jax.tree.leaves(self.batch)[0].shape[0], jnp.int32)
        return jnp.sum(self.real, dtype=jnp.int32)
