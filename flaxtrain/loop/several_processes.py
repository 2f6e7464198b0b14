"""What several processes that make one run have to have in common."""

from __future__ import annotations

from typing import Any

import jax

from flaxtrain.data import Stream
from flaxtrain.loop.plan import spec_text
from flaxtrain.parallel import agree
from flaxtrain.train import Recipe, TrainState

__all__ = ["agree_on_the_run"]


def agree_on_the_run(
    recipe: Recipe, state: TrainState, stream: Stream, seed: int, **lengths: Any
) -> None:
    """Compares what decides the numbers of a run, before the first step.

    Args:
        recipe: what does not change in the run.
        state: the state before the first step.
        stream: the training data.
        seed: the trainer's seed.
        **lengths: how long the run is, and how its steps are called.

    Raises:
        ProcessError: the processes differ; the message says in what.
    """
    if jax.process_count() == 1:
        return
    leaves = jax.tree_util.tree_leaves_with_path(recipe.example)
    agree(
        {
            "seed": seed,
            "spec": spec_text(recipe.spec),
            "precision": repr(recipe.casts.precision),
            "parameters": {fact.name: list(fact.shape) for fact in recipe.facts.values()},
            "batch": {jax.tree_util.keystr(path): str(leaf) for path, leaf in leaves},
            "batches per epoch": stream.batches_per_epoch,
            "batches done": int(jax.device_get(state.counters.batches)),
            **lengths,
        }
    )
