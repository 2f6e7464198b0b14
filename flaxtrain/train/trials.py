"""Parts of a training step by themselves, to look at a model before it is trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.train.contract import run_loss
from flaxtrain.train.frozen_modules import NOTHING_FROZEN
from flaxtrain.train.gradient import gradient
from flaxtrain.train.keys import step_key
from flaxtrain.train.model import BoundModel
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.tree import Path, widened
from flaxtrain.typing import Array, Batch, Updates

__all__ = ["row_outputs", "trial_gradient"]


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
    recipe = recipe.changed(frozen=NOTHING_FROZEN)
    state, rows = state.replace(trainable=trained), Rows(batch)
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
