"""The forward pass: one run of the loss function on the model, bound to the state."""

from __future__ import annotations

from flaxtrain.train.contract import LossOutput, call_loss
from flaxtrain.train.frozen_calls import AS_THEY_COME, Calls
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.rows import Rows
from flaxtrain.train.state import TrainState
from flaxtrain.typing import Collections, Key, Params

__all__ = ["forward"]


def forward(
    recipe: Recipe,
    state: TrainState,
    rows: Rows,
    *,
    trainable: Params | None = None,
    key: Key | None = None,
    train: bool = True,
    calls: Calls = AS_THEY_COME,
) -> tuple[LossOutput, Collections]:
    """Runs the loss function on one batch or microbatch, at once; nothing changes.

    Args:
        recipe: what does not change in the run.
        state: the state before the step.
        rows: the batch.
        trainable: the trained parameters, beside the frozen ones; default those of the state.
        key: from which random streams are derived; default that of the step.
        train: whether this is training.
        calls: what becomes of the calls of modules, such as frozen ones.

    Returns:
        What the loss function has returned, and the collections after it.
    """
    params = state.params
    if trainable is not None:
        _, frozen = state.split_params()
        params = state.joined(trainable, frozen)
    model = recipe.bind(state, params, train=train, key=key, mask=rows.real, weight=rows.weight)
    model.frozen_calls = calls
    return call_loss(recipe.loss_fn, model, rows.batch), model.collections
