"""Successive batches summed up until they make an update.

A loss is a sum of terms j, each a mean s_j / W_j. Of batches i = 1..k, with g_ij the gradient
of s_ij / w_ij, the gradient of one batch with all their rows is
    sum_j (sum_i w_ij g_ij) / W_j,    W_j = sum_i w_ij
All W_j are known with the last batch only, so that there is a sum for each term.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from flaxtrain import tree
from flaxtrain.metrics import Terms
from flaxtrain.train.keys import microbatch_key
from flaxtrain.typing import Array, Key, Params, Updates

__all__ = ["AccumulatedBatches", "Accumulation", "OneBatch", "SeveralBatches"]


class AccumulatedBatches(struct.PyTreeNode):
    """What the batches of the update in progress add up to.

    Attributes:
        grads: for each term of the loss, the sum of its gradient times its weight; a tree like
            the trained parameters, float32 at least.
        losses: float `[terms]`, the sum of each term so far.
        weights: float `[terms]`, their weights.
        count: batches so far, int32 scalar.
    """

    grads: tuple[Updates, ...]
    losses: Array
    weights: Array
    count: Array


@runtime_checkable
class Accumulation(Protocol):
    """From the gradients of batches to those of updates; `OneBatch` and `SeveralBatches`.

    Attributes:
        every_batch: whether every batch makes an update.
    """

    every_batch: ClassVar[bool]

    def init(self, trainable: Params, terms: Callable[[], int]) -> Any:
        """Returns what the state holds before the first batch of an update.

        Args:
            trainable: the trained parameters.
            terms: returns the number of terms of the loss; it takes a run of the model's code.
        """
        ...

    def key(self, key: Key, sums: Any) -> Key:
        """Returns the key of the next batch, from that of the step."""
        ...

    def objectives(self, loss: Terms) -> list[Array]:
        """Returns the numbers of a batch that are differentiated, each on its own."""
        ...

    def emits(self, sums: Any) -> Array | bool:
        """Whether the next batch completes an update."""
        ...

    def add(self, sums: Any, grads: Sequence[Updates], loss: Terms) -> Any:
        """Adds a batch: the gradients of its objectives, and its loss."""
        ...

    def emit(self, sums: Any) -> tuple[Updates, Array, Any]:
        """Returns gradient and loss of the batches that were added, and sums to begin anew."""
        ...


@dataclass(frozen=True)
class OneBatch:
    """An update for each batch: the state holds nothing.

    Example:
        >>> OneBatch().init({"w": jnp.ones(2)}, lambda: 1)
        ()
    """

    every_batch: ClassVar[bool] = True

    def init(self, trainable: Params, terms: Callable[[], int]) -> tuple[()]:
        """Returns nothing."""
        return ()

    def key(self, key: Key, sums: Any) -> Key:
        """Returns `key`."""
        return key

    def objectives(self, loss: Terms) -> list[Array]:
        """Returns the loss."""
        return [loss.compute()]

    def emits(self, sums: Any) -> bool:
        """Returns True."""
        return True

    def add(self, sums: Any, grads: Sequence[Updates], loss: Terms) -> tuple[Updates, Array]:
        """Returns gradient and loss of the batch."""
        return grads[0], loss.compute()

    def emit(self, sums: tuple[Updates, Array]) -> tuple[Updates, Array, tuple[()]]:
        """Returns gradient and loss of the batch, and nothing."""
        return *sums, ()


@dataclass(frozen=True)
class SeveralBatches:
    """An update of the rows of several successive batches.

    Args:
        count: batches to an update.

    Example:
        >>> from flaxtrain.metrics import Mean
        >>> two = SeveralBatches(2)
        >>> sums = two.init({"w": jnp.ones(())}, lambda: 1)
        >>> for gradient, rows in ((1.0, 3.0), (5.0, 1.0)):
        ...     print(two.emits(sums))
        ...     loss = Terms((Mean(jnp.array(6.0), jnp.array(rows)),))
        ...     sums = two.add(sums, [{"w": jnp.array(gradient)}], loss)
        False
        True
        >>> gradient, loss, sums = two.emit(sums)
        >>> print(gradient["w"], loss, sums.count)
        2.0 3.0 0
    """

    every_batch: ClassVar[bool] = False
    count: int

    def init(self, trainable: Params, terms: Callable[[], int]) -> AccumulatedBatches:
        """Returns zeros."""
        wide, number = tree.widened(trainable), terms()
        return AccumulatedBatches(
            grads=tuple(tree.zeros_like(wide) for _ in range(number)),
            losses=jnp.zeros(number),
            weights=jnp.zeros(number),
            count=jnp.zeros((), jnp.int32),
        )

    def key(self, key: Key, sums: AccumulatedBatches) -> Key:
        """Returns that of a microbatch with the batch's number."""
        return microbatch_key(key, sums.count)

    def objectives(self, loss: Terms) -> list[Array]:
        """Returns the terms of the loss."""
        return [term.compute() for term in loss.terms]

    def emits(self, sums: AccumulatedBatches) -> Array:
        """Returns whether all batches but one are there."""
        return sums.count + 1 >= self.count

    def add(
        self, sums: AccumulatedBatches, grads: Sequence[Updates], loss: Terms
    ) -> AccumulatedBatches:
        """Returns the sums with one more batch."""
        dtype = sums.weights.dtype
        weights = [jnp.asarray(term.weight, dtype) for term in loss.terms]
        losses = [jnp.asarray(term.sum, dtype) for term in loss.terms]
        found = zip(sums.grads, weights, grads, strict=True)
        return AccumulatedBatches(
            grads=tuple(
                tree.add(old, _scaled(grad, weight, old)) for old, weight, grad in found
            ),
            losses=sums.losses + jnp.stack(losses),
            weights=sums.weights + jnp.stack(weights),
            count=sums.count + 1,
        )

    def emit(self, sums: AccumulatedBatches) -> tuple[Updates, Array, AccumulatedBatches]:
        """Returns the sums of the terms' means, and zeros."""
        known = jnp.where(sums.weights == 0, 1, sums.weights)
        factors = jnp.where(sums.weights == 0, 0, 1 / known)
        means = [_scaled(grads, factor, grads) for factor, grads in zip(factors, sums.grads)]
        value = jnp.sum(factors * sums.losses)
        return functools.reduce(tree.add, means), value, tree.zeros_like(sums)


def _scaled(grads: Updates, factor: Array, like: Updates) -> Updates:
    """Returns gradients times a factor, in the dtypes of another tree."""
    return jax.tree.map(
        lambda leaf, wide: leaf.astype(wide.dtype) * factor.astype(wide.real.dtype), grads, like
    )
