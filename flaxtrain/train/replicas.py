"""What a training step has to know of other devices that work on the same batch.

Where one program sees the whole batch, on however many devices `jit` spreads it, that is
nothing. Inside of `jax.pmap` each replica sees a part of the rows, and what it finds is a part:

    sums          added up: weights, gradients, examples, those that BatchNorm divides
    metrics       merged
    random keys   one for each replica, so that no two rows share their dropout
    decisions     the same on all replicas, since all that they depend on is the same

Gradients: each replica differentiates its share of the loss, and what other replicas owe to its
parameters and statistics comes back through the sums, since the transpose of a sum over
replicas is that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from flaxtrain.metrics.monoid import merge_over
from flaxtrain.train.shared_statistics import shared_statistics
from flaxtrain.typing import Array, Key

__all__ = ["ONE_PROGRAM", "AxisReplicas", "OneProgram", "Replicas"]

T = TypeVar("T")


@dataclass(frozen=True)
class Replicas:
    """What a step asks of the replicas, and the answers where one program sees the whole batch.

    A hashable value.

    Example:
        >>> ONE_PROGRAM.microbatches({"x": jnp.arange(4)}, 2)["x"].tolist()
        [[0, 1], [2, 3]]
    """

    def sum(self, tree: T) -> T:
        """Adds up arrays over all replicas."""
        return tree

    def any(self, found: Array) -> Array:
        """Returns whether a bool array is True on some replica."""
        return found

    def merged(self, metrics: T) -> T:
        """Merges a metric, or a mapping of metrics, over all replicas, in their order."""
        return metrics

    def same(self, tree: T) -> T:
        """Returns arrays that are the same on all replicas as they are.

        To differentiate a sum over replicas with respect to them gives the gradient of the sum
        on every replica.
        """
        return tree

    def key(self, key: Key) -> Key:
        """Returns the random key of this replica, from that of the batch."""
        return key

    def first_row(self, counts: Array) -> Callable[[Array], Array]:
        """Returns a function from `[rows, ...]` to `[1, ...]`: the first row that counts.

        Args:
            counts: bool `[rows]`.
        """
        return lambda leaf: _first_row(leaf, counts)

    def microbatches(self, tree: T, count: int) -> T:
        """Returns arrays `[rows, ...]` as `[count, rows / count, ...]`, in their order."""
        return _microbatches(tree, count)

    def model_context(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns the context in which the model runs.

        In it, BatchNorm forms the statistics of all replicas' rows.

        Args:
            rngs: the random streams of the model; the context has streams to add to them.
        """
        return nullcontext({})


ONE_PROGRAM = Replicas()
"""The default: nothing is known of other devices."""


@dataclass(frozen=True)
class OneProgram(Replicas):
    """One program sees the whole batch, which `jit` spreads over devices.

    Args:
        spread: spreads the rows of each of the microbatches `[count, rows / count, ...]`.
        context: from the random streams of a model to the context in which it runs, with
            streams to add to them.
    """

    spread: Callable[[Any], Any]
    context: Callable[[Mapping[str, Key]], AbstractContextManager[dict[str, Key]]]

    def microbatches(self, tree: T, count: int) -> T:
        """Returns the microbatches, spread."""
        return self.spread(_microbatches(tree, count))

    def model_context(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns `context(rngs)`; all rows are in the program."""
        return self.context(rngs)


@dataclass(frozen=True)
class AxisReplicas(Replicas):
    """The replicas of `jax.pmap(..., axis_name)`. See `Replicas` for the members.

    Random numbers differ from those of one program: each replica folds its number into its key.

    Args:
        axis_name: the name of the mapped axis.

    Example:
        >>> step = jax.pmap(AxisReplicas("data").sum, axis_name="data")
        >>> step(jnp.ones((1, 2))).tolist()
        [[1.0, 1.0]]
    """

    axis_name: str

    def sum(self, tree: T) -> T:
        """Returns the sums over all replicas."""
        return jax.lax.psum(tree, self.axis_name)

    def any(self, found: Array) -> Array:
        """Returns whether there is one."""
        return self.sum(found.astype(jnp.int32)) > 0

    def merged(self, metrics: T) -> T:
        """Merges; a mean of which all replicas hold the same value has the weight of all."""
        return merge_over(
            metrics, self.sum, lambda leaf: jax.lax.all_gather(leaf, self.axis_name)
        )

    def same(self, tree: T) -> T:
        """Returns `tree`. The means of cotangents undo that each replica has a whole one."""

        @jax.custom_jvp
        def identity(tree: T) -> T:
            return tree

        @identity.defjvp
        def _(primals: tuple[T], tangents: tuple[T]) -> tuple[T, T]:
            return *primals, jax.lax.pmean(tangents[0], self.axis_name)

        return identity(tree)

    def key(self, key: Key) -> Key:
        """Folds the number of the replica into the key."""
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))

    def first_row(self, counts: Array) -> Callable[[Array], Array]:
        """Returns a function that fetches the row from the first replica that has one."""
        own = jax.lax.axis_index(self.axis_name)
        none = jax.lax.axis_size(self.axis_name)
        first = jax.lax.pmin(jnp.where(jnp.any(counts), own, none), self.axis_name)

        def fetch(leaf: Array) -> Array:
            # On a replica without any, and in a batch without any, a row of zeros.
            row = _first_row(leaf, counts)
            sent = jnp.where(own == first, row, jnp.zeros_like(row))
            return self.sum(sent).astype(row.dtype)  # a sum of bools is an integer

        return fetch

    def model_context(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Hands the calls of `nn.BatchNorm` to `shared_statistics`."""
        return shared_statistics(self.axis_name, rngs)


def _first_row(leaf: Array, counts: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(jnp.asarray(leaf), jnp.argmax(counts), keepdims=True)


def _microbatches(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (count, -1, *leaf.shape[1:])), tree)
