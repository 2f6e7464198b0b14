"""One training step, and one evaluation step: pure functions, to be compiled by their caller.

    batch -> rows that count -> for each microbatch: forward -> weighted loss -> scale
          -> gradient of the trainable part -> sum -> unscale
          -> finite? -> accept: add to the batches of this update; with the last one
                                clip, precondition, decay, learning rate, apply
                        reject: keep everything
          -> loss scale, counters, metrics

A step is accepted or rejected whole. Metrics see the gradients, the updates and the old state.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.answering import answering
from flaxtrain.data.inputs import model_inputs
from flaxtrain.metrics.monoid import empty_like
from flaxtrain.train.arguments import check_call, check_norms
from flaxtrain.train.forward_pass import forward
from flaxtrain.train.gradient import gradient, loss_function
from flaxtrain.train.keys import step_key
from flaxtrain.train.model import call_arguments
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.train.update import Change, Found, single
from flaxtrain.train.verdict import halts, verdict
from flaxtrain.tree import add, sum_of_squares, where
from flaxtrain.typing import Array, ArrayLike, Batch, Updates

__all__ = ["eval_step", "predict_step", "train_step"]

Metrics = dict[str, Any]


@answering
def train_step(
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    mask: ArrayLike | None = None,
    *,
    norms: bool | Array = True,
) -> tuple[TrainState, Metrics]:
    """Makes one training step. Pure: compile it with `recipe` static and `state` donated.

    Args:
        recipe: what does not change in the run.
        state: the state before.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows at the end; None for a full batch.
        norms: whether to form the norms of updates and parameters and to report the learning
            rate. A traced bool scalar costs nothing where it is False.

    Returns:
        The state after, and the metrics by name, each with its weight (all weights are 0 in a
        rejected step): `loss`, those of the loss function, `grad_norm` (before clipping),
        `clipped_grad_norm` (after it, if the spec clips), `update_norm`, `param_norm`,
        `learning_rate`, `weight_decay` (its coefficient); of several groups of parameters,
        these also as `grad_norm/<group>` and so on. Of a dynamic loss scale also `loss_scale`,
        in a rejected step too.

    Raises:
        BatchError: the batch does not divide into microbatches.
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: the mask has another number of rows than the batch.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from flaxtrain import OptSpec, make_recipe
        >>> batch = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> recipe = make_recipe(nn.Dense(2), OptSpec("sgd", learning_rate=0.1), batch)
        >>> step = jax.jit(train_step, static_argnums=0, donate_argnums=1)
        >>> state = recipe.init(seed=0)
        >>> for _ in range(3):
        ...     state, metrics = step(recipe, state, batch)
        >>> int(state.step), float(metrics["accuracy"].compute())
        (3, 1.0)
    """
    check_call(recipe, state, batch, where="train_step", mask=mask)
    check_norms(norms)
    accumulation, replicas = recipe.accumulation, recipe.replicas
    rows = Rows.of(batch, mask, replicas)
    key = replicas.key(accumulation.key(step_key(state.rng, state.step), state.accumulated))
    grads, output, collections = gradient(recipe, state, rows, accumulation.objectives, key)
    grads = state.loss_scale.unscale(grads)
    # That of the batch: terms may pull in opposite directions.
    grad_norm = _norm(functools.reduce(add, grads))
    examples = replicas.sum(rows.examples)
    decided = verdict(state, output.loss, grad_norm, collections, examples)
    used = state.loss_scale
    halted = halts(recipe.spec, state.counters, decided, used.at_minimum)
    found = Found(grads, grad_norm, output.loss, collections, examples)
    value = loss_function(recipe, state, rows, key)
    functions = {"value_fn": value} if accumulation.every_batch else {}
    state, step_metrics = Change(recipe, state, functions).made(found, decided, halted, norms)
    state = state.replace(
        loss_scale=where(decided.tried, used.adjust(decided.finite), used),
        spikes=state.spikes.after(output.loss.compute(), grad_norm, decided.accept),
    )
    scale = {name: single(value) for name, value in used.report().items()}
    return state, {**_if_accepted(output.metrics, decided.accept), **scale, **step_metrics}


def _norm(grads: Updates) -> Array:
    """Returns the norm of all gradients together, as `global_norm` does.

    The sums of the arrays are added up as one vector: on a TPU each addition of two numbers is
    a launch, and without the barrier the compiler takes the vector apart.
    """
    sums = [jnp.zeros((), jnp.float32), *map(sum_of_squares, jax.tree.leaves(grads))]
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.stack(sums))))


def _if_accepted(metrics: Metrics, accept: Array) -> Metrics:
    """Empties the metrics of a rejected step, so that a NaN does not spoil the whole window."""

    def keep(metric: Any) -> Any:
        empty = empty_like(metric)
        return jax.tree.map(lambda value, zero: jnp.where(accept, value, zero), metric, empty)

    return {name: keep(metric) for name, metric in metrics.items()}


@answering
def eval_step(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> Metrics:
    """Returns the loss and metrics of one batch in evaluation mode; nothing changes.

    Args:
        recipe: what does not change in the run.
        state: the state to evaluate.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: the mask has another number of rows than the batch.
    """
    check_call(recipe, state, batch, where="eval_step", mask=mask)
    rows = Rows.of(batch, mask, recipe.replicas)
    return recipe.replicas.merged(forward(recipe, state, rows, train=False)[0].metrics)


@answering
def predict_step(recipe: Recipe, state: TrainState, batch: Batch) -> Any:
    """Returns the model's output for one batch in evaluation mode.

    Raises:
        LossError: it is not clear what part of the batch the model takes.
        ArgumentTypeError: an argument has the wrong type.
    """
    check_call(recipe, state, batch, where="predict_step")
    args, kwargs = model_inputs(batch, call_arguments(recipe.module))
    model = recipe.bind(state, state.params, train=False)
    return model(*args, **kwargs)
