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
from flaxtrain.metrics import Mean, Terms
from flaxtrain.metrics.monoid import empty_like, merge
from flaxtrain.train.contract import LossOutput
from flaxtrain.train.dependencies import dependencies
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.frozen_features import separated
from flaxtrain.train.keys import microbatch_key
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.replicas import Replicas
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.typing import Array, Collections, Key, Params, Updates

__all__ = ["gradient", "loss_function"]

Run: TypeAlias = Callable[[Params, Rows, TrainState, Key], tuple[LossOutput, Collections]]
"""Runs the loss function with the key of a microbatch; returns what it returned, and the
collections behind it."""

Objectives: TypeAlias = Callable[[Terms], list[Array]]
"""From a loss to the numbers that are differentiated, each on its own."""

Differentiated: TypeAlias = tuple[list[Updates], LossOutput, Collections]

_LOSS = "flaxtrain/loss"


def gradient(
    recipe: Recipe, state: TrainState, rows: Rows, objectives: Objectives, key: Key
) -> Differentiated:
    """Differentiates the scaled loss with respect to the trainable parameters only.

    Args:
        recipe: what does not change in the run; of its spec, the number of microbatches.
        state: the state before.
        rows: the batch.
        objectives: from the loss of the batch to what is differentiated: the loss, or each of
            its terms.
        key: the key of the batch.

    Returns:
        The gradient of each objective times the loss scale, trees like the trainable
        parameters, of float32 at least; what the loss function returned; the collections after
        the batch. Of several replicas all have those of the whole batch.

    Raises:
        BatchError: the batch does not divide into microbatches.
    """
    trainable, _ = state.split_params()
    accumulation = recipe.spec.accumulation
    accumulation.check_rows(jax.tree.leaves(rows.batch)[0].shape[0])
    run, count = functools.partial(_run, recipe), accumulation.microbatches
    if count == 1:
        found = _at_once(recipe, run, trainable, rows, state, objectives, key)
    else:
        parts = recipe.replicas.microbatches(rows, count)
        found = _summed(recipe, run, trainable, parts, state, objectives, key)
    grads, output, collections = found
    # Widened first: what is tiny in 16 bits is zero once other parts are added, or the scale
    # is gone.
    return recipe.replicas.sum(tree.widened(grads)), output, collections


def _at_once(
    recipe: Recipe,
    run: Run,
    trainable: Params,
    rows: Rows,
    state: TrainState,
    objectives: Objectives,
    key: Key,
) -> Differentiated:
    replicas = recipe.replicas

    def shares(loss: Terms) -> list[Array]:
        return objectives(_share(replicas, loss))

    grads, output, after = _differentiated(run, trainable, rows, state, shares, key)
    merged = LossOutput(replicas.merged(output.loss), replicas.merged(output.metrics))
    return grads, merged, after


def loss_function(
    recipe: Recipe, state: TrainState, rows: Rows, key: Key
) -> Callable[[Params], Array]:
    """Returns the loss of a batch in training, as a function of the trained parameters.

    It draws the random numbers of the step, and changes nothing. It is not scaled.

    Args:
        recipe: what does not change in the run.
        state: the state before the step.
        rows: the batch.
        key: the key of the batch.
    """
    run, count = functools.partial(_run, recipe), recipe.spec.accumulation.microbatches
    stored, replicas = state.split_params()[0], recipe.replicas

    def whole(loss: Terms) -> Array:
        return replicas.sum(_share(replicas, loss).compute())

    def value(trainable: Params) -> Array:
        trainable = replicas.same(trainable)
        # Optimizers may be given more exact values than the ones that the model is run with.
        trainable = jax.tree.map(lambda new, old: new.astype(old.dtype), trainable, stored)
        if count == 1:
            return whole(run(trainable, rows, state, key)[0].loss)
        parts = replicas.microbatches(rows, count)
        entries = _Entry(jnp.arange(count, dtype=jnp.int32), parts)

        # What is differentiated keeps the activations of one microbatch.
        @jax.checkpoint
        def add(carry: tuple[Any, Collections], entry: _Entry) -> Any:
            terms, before = carry
            now = state.replace(collections=before)
            own = microbatch_key(key, entry.number)
            output, after = run(trainable, entry.rows, now, own)
            new = _unless_empty(replicas, terms.merge(output.loss), terms, entry.rows)
            weights = [term.weight > 0 for term in output.loss.terms]
            counts = replicas.any(functools.reduce(jnp.logical_or, weights))
            return (new, tree.where(counts, after, before)), None

        first = jax.tree.map(lambda leaf: leaf[0], entries.rows)
        loss = jax.eval_shape(lambda: run(trainable, first, state, key)[0].loss)
        start = (empty_like(loss), state.collections)
        unroll = count if recipe.unroll else 1
        return whole(jax.lax.scan(add, start, entries, unroll=unroll)[0][0])

    return value


def _run(
    recipe: Recipe, trainable: Params, rows: Rows, state: TrainState, key: Key
) -> tuple[LossOutput, Collections]:
    calls = separated(recipe, rows.real is not None)
    return forward(recipe, state, rows, trainable=trainable, key=key, calls=calls)


def _differentiated(
    run: Run,
    trainable: Params,
    rows: Rows,
    state: TrainState,
    objectives: Objectives,
    key: Key,
) -> Differentiated:
    def scaled(
        trainable: Params,
    ) -> tuple[list[Array], tuple[LossOutput, Collections]]:
        output, collections = run(trainable, rows, state, key)
        values = objectives(output.loss)
        return [state.loss_scale.scale(value) for value in values], (output, collections)

    values, pullback, (output, collections) = jax.vjp(scaled, trainable, has_aux=True)
    grads = [
        pullback([jnp.full_like(value, i == j) for j, value in enumerate(values)])[0]
        for i in range(len(values))
    ]
    return grads, output, collections


class _Sums(NamedTuple):
    """What the microbatches so far add up to."""

    grads: list[Updates]
    metrics: dict[str, Any]


class _Entry(NamedTuple):
    """One microbatch."""

    number: Array
    rows: Rows


def _summed(
    recipe: Recipe,
    run: Run,
    trainable: Params,
    microbatches: Rows,
    state: TrainState,
    objectives: Objectives,
    key: Key,
) -> Differentiated:
    replicas = recipe.replicas

    def weights(entry: _Entry) -> list[Array]:
        output, _ = run(trainable, entry.rows, state, microbatch_key(key, entry.number))
        found = [jnp.asarray(term.weight) for term in output.loss.terms]
        return _unless_empty(replicas, found, tree.zeros_like(found), entry.rows)

    def add(
        carry: tuple[_Sums, Collections], scanned: tuple[_Entry, Array]
    ) -> tuple[tuple[_Sums, Collections], None]:
        (sums, before), ((number, rows), counts) = carry, scanned

        def shares(loss: Terms) -> list[Array]:
            return objectives(_rescaled(loss, totals))

        now, own = state.replace(collections=before), microbatch_key(key, number)
        grads, output, after = _differentiated(run, trainable, rows, now, shares, own)
        new = _Sums(
            tree.add(sums.grads, tree.widened(grads)), merge(sums.metrics, _summed_up(output))
        )
        kept = _unless_empty(replicas, new, sums, rows)
        return (kept, tree.where(counts, after, before)), None

    count = jax.tree.leaves(microbatches)[0].shape[0]
    entries = _Entry(jnp.arange(count, dtype=jnp.int32), microbatches)
    unroll = count if recipe.unroll else 1
    found = replicas.sum(_of_each(weights, entries, unroll))
    totals = [jnp.sum(weight) for weight in found]
    counts = functools.reduce(jnp.logical_or, [weight > 0 for weight in found])
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    output = jax.eval_shape(lambda: run(trainable, first, state, key)[0])
    several = jax.eval_shape(objectives, output.loss)
    zeros = tree.zeros_like(tree.widened(trainable))
    start = _Sums([zeros for _ in several], empty_like(_summed_up(output)))
    (sums, collections), _ = jax.lax.scan(
        add, (start, state.collections), (entries, counts), unroll=unroll
    )
    # Its weights are the totals, which are constants where those of the microbatches are.
    metrics = replicas.merged(sums.metrics)
    loss = _rescaled(metrics.pop(_LOSS, metrics["loss"]), totals)
    return sums.grads, LossOutput(loss, metrics), collections


def _summed_up(output: LossOutput) -> dict[str, Any]:
    """Returns the metrics, and the loss where a metric of a collection has taken its name."""
    metrics = output.metrics
    return metrics if isinstance(metrics["loss"], Terms) else {**metrics, _LOSS: output.loss}


def _of_each(
    weights: Callable[[_Entry], list[Array]], entries: _Entry, unroll: int
) -> list[Array]:
    """Returns the weights of all microbatches, each `[microbatches]`.

    Without padding and weights of rows they are constants, which take no loop.
    """
    first = jax.tree.map(lambda leaf: leaf[0], entries)
    inputs = [1] * len(jax.tree.leaves(first))
    if any(dependencies(jax.make_jaxpr(weights)(first), inputs)):
        _, each = jax.lax.scan(lambda _, e: (_, weights(e)), None, entries, unroll=unroll)
        return each
    return [jnp.broadcast_to(weight, entries.number.shape) for weight in weights(first)]


def _unless_empty(replicas: Replicas, new: Any, old: Any, rows: Rows) -> Any:
    """Leaves out a microbatch of padding alone: statistics over no rows are NaN."""
    if rows.real is None:
        return new
    return tree.where(replicas.any(jnp.any(rows.real)), new, old)


def _share(replicas: Replicas, loss: Terms) -> Terms:
    """Returns the part of the whole batch's loss that one replica has."""
    return _rescaled(loss, replicas.sum([term.weight for term in loss.terms]))


def _rescaled(loss: Terms, totals: list[Array]) -> Terms:
    """Returns the part of the whole batch's loss that some rows are: sums over totals."""
    return Terms(
        tuple(Mean(term.sum, total) for term, total in zip(loss.terms, totals, strict=True))
    )
