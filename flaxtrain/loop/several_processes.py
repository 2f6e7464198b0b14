"""What several processes that make one run have to have in common."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from flaxtrain.data import Stream
from flaxtrain.data.local_rows import as_given
from flaxtrain.data.stream import ArrayStream
from flaxtrain.errors import ProcessError
from flaxtrain.loop.padding import has_masks
from flaxtrain.loop.plan import spec_text
from flaxtrain.parallel.processes import (
    ServiceLost,
    agree,
    decided,
    disagreement,
    peer_watch,
    raise_disagreement,
)
from flaxtrain.train import Recipe, TrainState

__all__ = [
    "agree_on_batches",
    "agree_on_the_end",
    "agree_on_the_run",
    "agree_on_the_source",
    "wait_for_all",
]

_END_SECONDS, _ERROR_SECONDS = 600.0, 300.0
"""How long a process waits for the others: after its steps, when they may be saving, and at an
error that all of them have and look at."""
_BATCHES_SECONDS, _PATIENCE, _APART_PATIENCE = 3600.0, 30.0, 120.0
"""How long a process waits for the others around one pass over data: in all, since they may be
saving or slow to read; after its own steps are done, when those of the others are too and the
end of their data was read ahead; and the same where the others may be some steps behind."""


def agree_on_the_source(workdir: Path | None, state: TrainState | None) -> None:
    """Compares what a run may go on from, before one process waits for the others there.

    Args:
        workdir: the run's directory, or None. Its path may differ between machines.
        state: that of the trainer, or None.

    Raises:
        ProcessError: only some of the processes have it.
    """
    if jax.process_count() > 1:
        given = {"workdir": workdir, "the trainer's state": state}
        agree({name: "None" if it is None else "given" for name, it in given.items()})


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


def agree_on_batches(
    count: int | None, where: str, steps: Any = None, *, together: bool = True
) -> None:
    """Compares how many batches one pass over data has: before it, and before its results.

    Args:
        count: the batches of this process; None if that is not known yet in this process.
        where: what passes over them, for messages.
        steps: the last results that were dispatched, a tree; None before the pass. Once they
            are there the others are not waited for much longer: they may hang in a step that
            this process does not make.
        together: whether a step needs all processes, so that none is behind another.

    Raises:
        ProcessError: the processes have different numbers of batches, or one of them does not
            come to its end.

    Example:
        >>> agree_on_batches(3, "evaluate")
    """
    if jax.process_count() == 1:
        return
    seconds = _PATIENCE if together else _APART_PATIENCE
    look = None if steps is None else _patience(count, where, steps, seconds)
    lines = decided(count, _unequal, where=where, timeout=_BATCHES_SECONDS, look=look)
    if lines:
        raise ProcessError(lines[0], where=where, details=lines[1:], fix=_EQUALLY_MANY)


_EQUALLY_MANY = "pass data with equally many batches in each process"


def _unequal(counts: Sequence[int | None]) -> list[str]:
    """Returns what differs, as lines; nothing while a process does not know its number."""
    if None in counts:
        return []
    return disagreement([{"batches": str(count)} for count in counts])


def _patience(count: int | None, where: str, steps: Any, seconds: float) -> Callable[[], None]:
    """Returns what raises when it is called long after all steps are done."""
    arrays = [leaf for leaf in jax.tree.leaves(steps) if hasattr(leaf, "is_ready")]
    done_at: list[float] = []

    def look() -> None:
        if not done_at and all(array.is_ready() for array in arrays):
            done_at.append(time.monotonic())
        if done_at and time.monotonic() - done_at[0] > seconds:
            raise ProcessError(
                f"this process has made all of its {count} batches, and not all of the others "
                f"have come to their end {seconds:g} seconds later",
                where=where,
                fix=_EQUALLY_MANY,
            )

    return look


def wait_for_all() -> None:
    """Waits until all processes have found the same error, for five minutes at most."""
    if jax.process_count() > 1:
        # Process 0 may be gone, too: the error of all is reported, and not that.
        with contextlib.suppress(ProcessError, ServiceLost):
            decided(None, len, where="at an error of all", timeout=_ERROR_SECONDS)
