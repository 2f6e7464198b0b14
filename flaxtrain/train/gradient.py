"""The gradient of one batch, at once or piece by piece.

A loss is a sum of terms j, each a mean: s_j / W_j. Of a batch in k microbatches, i = 1..k:
    W_j = sum_i w_ij                                  a first pass over the batch
    gradient = sum_i  d/dx  sum_j  s_ij / W_j         summed in float32 at least
which is the gradient of the whole batch, whatever the weights of rows and terms. Weights don't
depend on parameters, so nothing is left of the model in the first pass once it is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.metrics import Terms
from flaxtrain.metrics.monoid import empty_like, merge
from flaxtrain.train.contract import LossOutput, call_loss
from flaxtrain.train.frozen_features import separated
from flaxtrain.train.model import fold_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState
from flaxtrain.tree import graft
from flaxtrain.typing import Array, Batch, Collections, Params, Updates

__all__ = ["Rows", "gradient", "microbatch_key"]


class Rows(NamedTuple):
    """A batch, or a piece of one.

    Attributes:
        batch: every leaf `[rows, ...]`.
        real: bool `[rows]`, the rows that count; None where all do.
        weight: float `[rows]`, the weight of each row; None where all are 1.
    """

    batch: Batch
    real: Array | None
    weight: Array | None

    def pieces(self, count: int) -> Rows:
        """Returns the same rows as `[count, rows / count, ...]`, in their order."""
        return jax.tree.map(lambda leaf: jnp.reshape(leaf, (count, -1, *leaf.shape[1:])), self)


def microbatch_key(rng: Any, index: Any) -> Any:
    """Returns the root key of one microbatch: what `state.rng` is for a whole batch.

    Args:
        rng: the run's typed key.
        index: the number of the microbatch within its batch, from 0.
    """
    return fold_key(rng, "microbatch", index)


def gradient(
    recipe: Recipe, state: TrainState, rows: Rows
) -> tuple[Updates, LossOutput, Collections]:
    """Differentiates the scaled loss with respect to the trainable parameters only.

    Args:
        recipe: what does not change in the run; `options.accumulate` is the number of pieces.
        state: the state before.
        rows: the batch.

    Returns:
        The gradient of the loss times the loss scale, a tree like the trainable parameters;
        what the loss function returned; the collections after the batch.
    """
    trainable, frozen = state.split_params()

    def run(trainable: Params, rows: Rows, state: TrainState) -> tuple[LossOutput, Collections]:
        params = graft(trainable, frozen) if frozen else trainable
        model = recipe.bind(state, params, train=True, mask=rows.real, weight=rows.weight)
        model.frozen_calls = separated(recipe, rows.real is not None)
        return call_loss(recipe.loss_fn, model, rows.batch), model.collections

    if recipe.options.accumulate == 1:
        return _at_once(run, trainable, rows, state)
    return _in_pieces(run, trainable, rows.pieces(recipe.options.accumulate), state, recipe)


Run = Callable[[Params, Rows, TrainState], tuple[LossOutput, Collections]]


def _at_once(
    run: Run, trainable: Params, rows: Rows, state: TrainState
) -> tuple[Updates, LossOutput, Collections]:
    def objective(trainable: Params) -> tuple[Array, tuple[LossOutput, Collections]]:
        output, collections = run(trainable, rows, state)
        return state.loss_scale.scale(output.loss.compute()), (output, collections)

    grads, (output, collections) = jax.grad(objective, has_aux=True)(trainable)
    return grads, output, collections


class _Sums(NamedTuple):
    """What the microbatches so far add up to."""

    number: Array
    grads: Updates
    collections: Collections
    metrics: dict[str, Any]


def _in_pieces(
    run: Run, trainable: Params, pieces: Rows, state: TrainState, recipe: Recipe
) -> tuple[Updates, LossOutput, Collections]:
    def state_at(index: Array, collections: Collections) -> TrainState:
        return state.replace(rng=microbatch_key(state.rng, index), collections=collections)

    def weights(index: Array, piece: Rows) -> tuple[Array, list[Array]]:
        output, _ = run(trainable, piece, state_at(index, state.collections))
        found = [term.weight for term in output.loss.terms]
        return index + 1, _unless_empty(found, [0 * weight for weight in found], piece.real)

    def add(sums: _Sums, piece: Rows) -> tuple[_Sums, None]:
        def objective(trainable: Params) -> tuple[Array, tuple[LossOutput, Collections]]:
            output, collections = run(trainable, piece, state_at(sums.number, sums.collections))
            return state.loss_scale.scale(_share(output.loss, totals)), (output, collections)

        grads, (output, collections) = jax.grad(objective, has_aux=True)(trainable)
        new = _Sums(
            sums.number + 1,
            jax.tree.map(
                lambda total, grad: total + grad.astype(total.dtype), sums.grads, grads
            ),
            collections,
            merge(sums.metrics, output.metrics),
        )
        return _unless_empty(new, sums, piece.real)._replace(number=new.number), None

    unroll = recipe.options.accumulate if recipe.unroll else 1
    first = jnp.zeros((), jnp.int32)
    _, found = jax.lax.scan(weights, first, pieces, unroll=unroll)
    totals = [jnp.sum(weight) for weight in found]
    piece = jax.tree.map(lambda leaf: leaf[0], pieces)
    metrics = jax.eval_shape(lambda: run(trainable, piece, state)[0].metrics)
    start = _Sums(
        first, jax.tree.map(_zeros, trainable), state.collections, empty_like(metrics)
    )
    sums, _ = jax.lax.scan(add, start, pieces, unroll=unroll)
    return sums.grads, LossOutput(sums.metrics["loss"], sums.metrics), sums.collections


def _unless_empty(new: Any, old: Any, real: Array | None) -> Any:
    """Leaves out a microbatch of padding alone: statistics over no rows are NaN."""
    if real is None:
        return new
    some = jnp.any(real)
    return jax.tree.map(lambda new, old: jnp.where(some, new, old), new, old)


def _share(loss: Terms, totals: list[Array]) -> Array:
    """Returns what one microbatch adds to the loss of the whole batch."""
    shares = [
        term.sum / jnp.where(total == 0, 1, total) for term, total in zip(loss.terms, totals)
    ]
    return functools.reduce(jnp.add, shares)


def _zeros(param: Any) -> Array:
    """Returns what gradients are summed into, float32 at least."""
    return jnp.zeros(param.shape, jnp.promote_types(param.dtype, jnp.float32))
