"""The gradient of one batch, at once or microbatch by microbatch.

A loss is a sum of terms j, each a mean: s_j / W_j. Of a batch in k microbatches, i = 1..k:
    W_j = sum_i w_ij                                  a first pass over the batch
    gradient = sum_i  d/dx  sum_j  s_ij / W_j         summed in float32 at least
which is the gradient of the whole batch, whatever the weights of rows and terms. Weights don't
depend on parameters, so nothing is left of the model in the first pass once it is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flaxtrain import tree
from flaxtrain.metrics import Terms
from flaxtrain.metrics.monoid import empty_like, merge
from flaxtrain.train.contract import LossOutput, call_loss
from flaxtrain.train.frozen_features import separated
from flaxtrain.train.model import fold_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState
from flaxtrain.typing import Array, Batch, Collections, Key, Params, Updates

__all__ = ["Rows", "gradient", "microbatch_key"]


class Rows(NamedTuple):
    """A batch, or a part of one.

    Attributes:
        batch: every leaf `[rows, ...]`.
        real: bool `[rows]`, the rows that count; None where all do.
        weight: float `[rows]`, the weight of each row; None where all are 1.
    """

    batch: Batch
    real: Array | None
    weight: Array | None

    def microbatches(self, count: int) -> Rows:
        """Returns the same rows as `[count, rows / count, ...]`, in their order."""
        return jax.tree.map(lambda leaf: jnp.reshape(leaf, (count, -1, *leaf.shape[1:])), self)


def microbatch_key(rng: Key, index: Array | int) -> Key:
    """Returns the root key of one microbatch: what `state.rng` is for a batch at once.

    Args:
        rng: the run's typed key.
        index: the number of the microbatch within its batch, from 0; int32 scalar.

    Returns:
        A typed key.

    Example:
        >>> rng = jax.random.key(0)
        >>> bool(microbatch_key(rng, 0) == microbatch_key(rng, 1))
        False
    """
    return fold_key(rng, "microbatch", index)


Run: TypeAlias = Callable[[Params, Rows, TrainState], tuple[LossOutput, Collections]]
"""Runs the loss function; returns what it returned, and the collections behind it."""

Differentiated: TypeAlias = tuple[Updates, LossOutput, Collections]


def gradient(recipe: Recipe, state: TrainState, rows: Rows) -> Differentiated:
    """Differentiates the scaled loss with respect to the trainable parameters only.

    Args:
        recipe: what does not change in the run; its `options.accumulate` is the number of
            microbatches.
        state: the state before.
        rows: the batch.

    Returns:
        The gradient of the loss times the loss scale, a tree like the trainable parameters, of
        their dtype, or of float32 at least where microbatches are summed; what the loss
        function returned; the collections after the batch.

    Raises:
        BatchError: the batch does not divide into microbatches.
    """
    trainable, frozen = state.split_params()
    options = recipe.options
    options.check_rows(jax.tree.leaves(rows.batch)[0].shape[0])

    def run(trainable: Params, rows: Rows, state: TrainState) -> tuple[LossOutput, Collections]:
        params = tree.graft(trainable, frozen) if frozen else trainable
        model = recipe.bind(state, params, train=True, mask=rows.real, weight=rows.weight)
        model.frozen_calls = separated(recipe, rows.real is not None)
        return call_loss(recipe.loss_fn, model, rows.batch), model.collections

    if options.accumulate == 1:
        return _differentiated(run, trainable, rows, state, Terms.compute)
    unroll = options.accumulate if recipe.unroll else 1
    return _summed(run, trainable, rows.microbatches(options.accumulate), state, unroll)


def _differentiated(
    run: Run,
    trainable: Params,
    rows: Rows,
    state: TrainState,
    value: Callable[[Terms], Array],
) -> Differentiated:
    def objective(trainable: Params) -> tuple[Array, tuple[LossOutput, Collections]]:
        output, collections = run(trainable, rows, state)
        return state.loss_scale.scale(value(output.loss)), (output, collections)

    grads, (output, collections) = jax.grad(objective, has_aux=True)(trainable)
    return grads, output, collections


class _Sums(NamedTuple):
    """What the microbatches so far add up to."""

    grads: Updates
    metrics: dict[str, Any]


class _Entry(NamedTuple):
    """One microbatch."""

    number: Array
    rows: Rows


def _summed(
    run: Run, trainable: Params, microbatches: Rows, state: TrainState, unroll: int
) -> Differentiated:
    def state_at(index: Array, collections: Collections) -> TrainState:
        return state.replace(rng=microbatch_key(state.rng, index), collections=collections)

    def weights(none: None, entry: _Entry) -> tuple[None, list[Array]]:
        output, _ = run(trainable, entry.rows, state_at(entry.number, state.collections))
        found = [term.weight for term in output.loss.terms]
        return none, _unless_empty(found, tree.zeros_like(found), entry.rows)

    def add(
        carry: tuple[_Sums, Collections], scanned: tuple[_Entry, Array]
    ) -> tuple[tuple[_Sums, Collections], None]:
        (sums, before), ((number, rows), counts) = carry, scanned
        share = functools.partial(_share, totals=totals)
        now = state_at(number, before)
        grads, output, after = _differentiated(run, trainable, rows, now, share)
        new = _Sums(
            tree.add(sums.grads, tree.widened(grads)), merge(sums.metrics, output.metrics)
        )
        return (_unless_empty(new, sums, rows), tree.where(counts, after, before)), None

    count = jax.tree.leaves(microbatches)[0].shape[0]
    entries = _Entry(jnp.arange(count, dtype=jnp.int32), microbatches)
    _, found = jax.lax.scan(weights, None, entries, unroll=unroll)
    totals = [jnp.sum(weight) for weight in found]
    counts = functools.reduce(jnp.logical_or, [weight > 0 for weight in found])
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    metrics = jax.eval_shape(lambda: run(trainable, first, state)[0].metrics)
    start = _Sums(tree.zeros_like(tree.widened(trainable)), empty_like(metrics))
    (sums, collections), _ = jax.lax.scan(
        add, (start, state.collections), (entries, counts), unroll=unroll
    )
    return sums.grads, LossOutput(sums.metrics["loss"], sums.metrics), collections


def _unless_empty(new: Any, old: Any, rows: Rows) -> Any:
    """Leaves out a microbatch of padding alone: statistics over no rows are NaN."""
    return new if rows.real is None else tree.where(jnp.any(rows.real), new, old)


def _share(loss: Terms, totals: list[Array]) -> Array:
    """Returns what one microbatch adds to the loss of the whole batch."""
    shares = [
        jnp.where(total == 0, 0, term.sum / jnp.where(total == 0, 1, total))
        for term, total in zip(loss.terms, totals, strict=True)
    ]
    return functools.reduce(jnp.add, shares)
