"""Parts of a training step by themselves, to look at a model before it is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.train.contract import LossOutput, call_loss, run_loss
from flaxtrain.train.frozen_modules import NOTHING_FROZEN
from flaxtrain.train.gradient import Rows, gradient
from flaxtrain.train.keys import step_key
from flaxtrain.train.model import BoundModel
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import row_weights
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, widened
from flaxtrain.typing import Array, ArrayLike, Batch, Collections, Updates

__all__ = ["forward", "row_outputs", "trial_gradient"]


def forward(
    recipe: Recipe, state: TrainState, batch: Batch, mask: ArrayLike | None = None
) -> tuple[LossOutput, Collections]:
    """Returns loss, metrics and collections of a batch in training, at once; nothing changes.

    Args:
        recipe: what does not change in the run.
        state: the state before the step.
        batch: every leaf `[rows, ...]`.
        mask: bool `[rows]`, False for padding rows; None for a full batch.
    """
    batch, real_rows, weight = row_weights(batch, mask)
    model = recipe.bind(state, state.params, train=True, mask=real_rows, weight=weight)
    return call_loss(recipe.loss_fn, model, batch), model.collections


def trial_gradient(
    recipe: Recipe, state: TrainState, batch: Batch, trained: frozenset[Path]
) -> tuple[Array, Updates]:
    """Returns loss and gradient of a batch, as if exactly these parameters were trained.

    Args:
        recipe: what does not change in the run; no module is frozen here.
        state: the state to look at.
        batch: every leaf `[rows, ...]`; every row counts.
        trained: paths of parameters.

    Returns:
        The loss, and nested dicts of the gradient without the loss scale, float32 at least.
    """
    recipe = replace(recipe, frozen=NOTHING_FROZEN, _by_phase={}, _with_features={})
    state, rows = state.replace(trainable=trained), Rows(batch, None, None)
    key = step_key(state.rng, state.step)
    [grads], output, _ = gradient(recipe, state, rows, lambda loss: [loss.compute()], key)
    return output.loss.compute(), state.loss_scale.unscale(widened(grads))


def row_outputs(recipe: Recipe, state: TrainState, batch: Batch, *, train: bool) -> list[Array]:
    """Returns the arrays that the model returns to the loss with a row for each example.

    No row is masked: one that doesn't count has its own output all the same.

    Args:
        recipe: what does not change in the run.
        state: the state to look at.
        batch: every leaf `[rows, ...]`.
        train: whether the model runs as in training, with the keys of the state's step.
    """
    model = RecordedModel(recipe.bind(state, state.params, train=train))
    run_loss(recipe.loss_fn, model, batch)
    rows = jax.tree.leaves(batch)[0].shape[0]
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(model.outputs)]
    return [leaf for leaf in leaves if leaf.shape[:1] == (rows,)]


class RecordedModel(BoundModel):
    """A bound model that keeps what its calls return.

    Args:
        model: the bound model; it is not used any more.

    Attributes:
        outputs: what the calls so far have returned.
    """

    def __init__(self, model: BoundModel) -> None:
        self.__dict__.update(model.__dict__)
        self.outputs: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        self.outputs.append(super().__call__(*args, **kwargs))
        return self.outputs[-1]
