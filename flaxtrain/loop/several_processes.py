"""What several processes that make one run have to have in common."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from flaxtrain.data import Stream
from flaxtrain.data.local_rows import as_given
from flaxtrain.data.stream import ArrayStream
from flaxtrain.errors import ProcessError
from flaxtrain.loop.padding import has_masks
from flaxtrain.loop.plan import spec_text
from flaxtrain.parallel.processes import (
    agree,
    decided,
    disagreement,
    peer_watch,
    raise_disagreement,
)
from flaxtrain.train import Recipe, TrainState

__all__ = ["agree_on_the_end", "agree_on_the_run", "wait_for_all"]

_END_SECONDS, _ERROR_SECONDS = 600.0, 300.0
"""How long a process waits for the others: after its steps, when they may be saving, and at an
error that all of them have and look at."""


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


def agree_on_the_end(
    batches: int, reason: str | None, interrupted: bool
) -> tuple[str | None, KeyboardInterrupt | None]:
    """Finds why the run ends, before anything is done together again.

    Args:
        batches: number of batches that were taken.
        reason: why a hook of this process has ended the run, or None.
        interrupted: whether Ctrl-C was pressed in this process.

    Returns:
        The reason, of the first process that has one; and where Ctrl-C was pressed in any of
        them, the error that ends all. They are the same in all processes.

    Raises:
        ProcessError: a process has ended elsewhere or goes on, or does not end within ten
            minutes.
    """
    if jax.process_count() == 1:
        return reason, KeyboardInterrupt() if interrupted else None
    where = "after the last step"
    answer = batches, reason, interrupted
    look = partial(_refuse_who_is_ahead, batches, where)
    outcome = decided(answer, _outcome, where=where, timeout=_END_SECONDS, look=look)
    raise_disagreement(outcome["lines"], where)
    who = outcome["interrupted"]
    return outcome["reason"], None if who is None else KeyboardInterrupt(f"in process {who}")


def _refuse_who_is_ahead(batches: int, where: str) -> None:
    """Looks whether this process is waited for in a step that it does not make."""
    if (ahead := peer_watch().ahead(batches)) is not None:
        raise ProcessError(
            f"this process has made all of its {batches} batches, and process {ahead} goes on",
            where=where,
            fix="let the data of each process have equally many batches, or pass steps=",
        )


def _outcome(answers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Returns what `agree_on_the_end` makes of its arguments in all processes."""
    return {
        "lines": disagreement([{"last batch": str(batches)} for batches, _, _ in answers]),
        "reason": next((reason for _, reason, _ in answers if reason is not None), None),
        "interrupted": next((who for who, (*_, is_so) in enumerate(answers) if is_so), None),
    }


def wait_for_all() -> None:
    """Waits until all processes have found the same error, for five minutes at most."""
    if jax.process_count() > 1:
        with contextlib.suppress(ProcessError):
            decided(None, len, where="at an error of all", timeout=_ERROR_SECONDS)
