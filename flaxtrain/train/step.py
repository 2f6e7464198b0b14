"""One training step, and one evaluation step: pure functions, to be compiled by their caller.

    batch -> rows that count -> for each microbatch: forward -> weighted loss -> scale
          -> gradient of the trainable part -> sum -> unscale
          -> finite? -> accept: clip, precondition, decay, learning rate, apply
                        reject: keep everything
          -> loss scale, counters, metrics

A step is accepted or rejected whole. Metrics see the gradients, the updates and the old state.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.data.inputs import model_inputs
from flaxtrain.metrics import Mean, Terms
from flaxtrain.metrics.monoid import empty_like
from flaxtrain.train.contract import call_loss
from flaxtrain.train.gradient import Rows, gradient
from flaxtrain.train.model import call_arguments
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import row_weights
from flaxtrain.train.state import Counters, TrainState
from flaxtrain.train.step_values import step_values, value_names
from flaxtrain.tree import all_finite, global_norm, where, widened
from flaxtrain.typing import Array, ArrayLike, Batch, Updates

__all__ = ["eval_step", "predict_step", "train_step"]

Metrics = dict[str, Any]


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
            rate; may be a traced bool scalar, and then costs nothing in the other steps.

    Returns:
        The state after, and the metrics by name, each with its weight (all weights are 0 in a
        rejected step): `loss`, those of the loss function, `grad_norm` (before clipping),
        `update_norm`, `param_norm`, `learning_rate`, `weight_decay` (its coefficient); of
        several groups of parameters, these five also as `grad_norm/<group>` and so on. Of a
        dynamic loss scale also `loss_scale`, in a rejected step too.

    Raises:
        BatchError: the batch does not divide into microbatches.

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
    batch, real_rows, weight = row_weights(batch, mask)
    grads, output, collections = gradient(recipe, state, Rows(batch, real_rows, weight))
    # Widened first: what is tiny in 16 bits is zero once the scale is gone.
    grads = state.loss_scale.unscale(widened(grads))
    grad_norm = global_norm(grads)
    finite = (
        jnp.isfinite(output.loss.compute()) & jnp.isfinite(grad_norm) & all_finite(collections)
    )
    tried = (_total_weight(output.loss) > 0) & (state.counters.halted == 0)
    accept = finite & tried
    state, step_metrics = _update(recipe, state, grads, grad_norm, collections, accept, norms)
    used = state.loss_scale
    # An overflow is answered by a lower scale, as long as there is one.
    halts = jnp.asarray(used.at_minimum) & (recipe.spec.nonfinite == "raise")
    state = state.replace(
        loss_scale=where(tried, used.adjust(finite), used),
        counters=_count(state.counters, _examples(batch, real_rows), tried, finite, halts),
    )
    metrics = {**output.metrics, "grad_norm": Mean(grad_norm, jnp.ones((), grad_norm.dtype))}
    scale = {name: _single(value) for name, value in used.report().items()}
    return state, {**_if_accepted(metrics, accept), **scale, **step_metrics}


def _update(
    recipe: Recipe,
    state: TrainState,
    grads: Updates,
    grad_norm: Array,
    collections: Any,
    accept: Array,
    norms: bool | Array,
) -> tuple[TrainState, Metrics]:
    """Accepts or rejects the step whole, in one conditional: a select would copy the state."""

    def reject(operands: tuple[TrainState, Updates, Any]) -> tuple[TrainState, Metrics]:
        return operands[0], {name: Mean.empty() for name in names}

    def accept_it(
        operands: tuple[TrainState, Updates, Any], report: bool
    ) -> tuple[TrainState, Metrics]:
        old, grads, collections = operands
        new, updates = old.updated(grads, grad_norm=grad_norm)
        new = new.replace(collections=collections)
        if not report:
            return new, {name: Mean.empty() for name in names}
        values = step_values(recipe.assignment, grads, updates, old.split_params()[0], new)
        return new, {name: _single(value) for name, value in values.items()}

    names = value_names(recipe.assignment, state)
    branches = [reject, lambda o: accept_it(o, False), lambda o: accept_it(o, True)]
    index = jnp.where(accept, 1 + jnp.asarray(norms, jnp.int32), 0)
    return jax.lax.switch(index, branches, (state, grads, collections))


def _single(value: ArrayLike) -> Mean:
    """Returns the metric of one value."""
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _examples(batch: Batch, real_rows: Array | None) -> Array:
    if real_rows is None:
        return jnp.asarray(jax.tree.leaves(batch)[0].shape[0], jnp.int32)
    return jnp.sum(real_rows, dtype=jnp.int32)


def _total_weight(loss: Terms) -> Array:
    return jnp.max(jnp.stack([jnp.asarray(term.weight, jnp.float32) for term in loss.terms]))


def _if_accepted(metrics: Metrics, accept: Array) -> Metrics:
    """Empties the metrics of a rejected step, so that a NaN does not spoil the whole window."""

    def keep(metric: Any) -> Any:
        empty = empty_like(metric)
        return jax.tree.map(lambda value, zero: jnp.where(accept, value, zero), metric, empty)

    return {name: keep(metric) for name, metric in metrics.items()}


def _count(
    counters: Counters, examples: Array, tried: Array, finite: Array, halts: Array
) -> Counters:
    accept, bad = tried & finite, tried & ~finite
    most = jnp.iinfo(jnp.int32).max
    seen = jnp.where(accept, examples, 0)
    return Counters(
        batches=counters.batches + (counters.halted == 0),
        examples=jnp.where(counters.examples > most - seen, most, counters.examples + seen),
        skipped=counters.skipped + bad,
        consecutive_skipped=jnp.where(accept, 0, counters.consecutive_skipped + bad),
        halted=counters.halted | (bad & halts),
    )


def eval_step(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> Metrics:
    """Returns the loss and metrics of one batch in evaluation mode; nothing changes.

    Args:
        recipe: what does not change in the run.
        state: the state to evaluate.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.
    """
    batch, real_rows, weight = row_weights(batch, mask)
    model = recipe.bind(state, state.params, train=False, mask=real_rows, weight=weight)
    return call_loss(recipe.loss_fn, model, batch).metrics


def predict_step(recipe: Recipe, state: TrainState, batch: Batch) -> Any:
    """Returns the model's output for one batch in evaluation mode.

    Raises:
        LossError: it is not clear what part of the batch the model takes.
    """
    args, kwargs = model_inputs(batch, call_arguments(recipe.module))
    model = recipe.bind(state, state.params, train=False)
    return model(*args, **kwargs)
