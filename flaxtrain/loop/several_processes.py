"""What several processes that make one run have to have in common."""

from __future__ import annotations

import hashlib
from typing import Any

import jax

from flaxtrain.data import Stream, as_given
from flaxtrain.data.stream import ArrayStream
from flaxtrain.loop.padding import has_masks
from flaxtrain.loop.plan import spec_text
from flaxtrain.parallel import agree
from flaxtrain.train import Recipe, TrainState

__all__ = ["agree_on_the_end", "agree_on_the_run"]

_END_SECONDS = 600.0
"""How long a process that has made its steps waits for the others: they may be saving."""


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
            "options": repr(recipe.options),
            "masks": has_masks(recipe, stream),
            "order of examples": _order(stream),
            "parameters": {fact.name: list(fact.shape) for fact in recipe.facts.values()},
            "batch": {jax.tree_util.keystr(path): str(leaf) for path, leaf in leaves},
            "batches per epoch": stream.batches_per_epoch,
            "batches done": int(jax.device_get(state.counters.batches)),
            **lengths,
        }
    )


def _order(stream: Stream) -> str | None:
    """Returns what tells orders of arrays apart: two seeds would use examples twice."""
    given = as_given(stream)
    if not isinstance(given, ArrayStream):
        return None
    return hashlib.sha256(given.source.order(0).tobytes()).hexdigest()


def agree_on_the_end(batches: int, reason: str | None) -> None:
    """Compares where the steps of a run have ended, before anything is done together again.

    Args:
        batches: number of batches that were taken.
        reason: why a hook has ended the run, or None.

    Raises:
        ProcessError: a process has ended elsewhere, or does not end within ten minutes.
    """
    if jax.process_count() > 1:
        found = {"last batch": batches, "reason": reason}
        agree(found, where="after the last step", timeout=_END_SECONDS)
