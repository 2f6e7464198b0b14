"""A rehearsal of a run: two steps of everything; trainer and workdir stay as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from flaxtrain.checkpoint import CHECKPOINTS, latest
from flaxtrain.data import is_arrays
from flaxtrain.durations import Horizon
from flaxtrain.errors import DebugError
from flaxtrain.loop.arguments import FitCall
from flaxtrain.loop.debug.few_batches import few_batches
from flaxtrain.loop.debug.scratch import scratch
from flaxtrain.loop.debug.twin import recipe_of, say, twin_of
from flaxtrain.loop.length import horizon_of
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.resume import continued
from flaxtrain.loop.streams import stream_in_order, training_stream
from flaxtrain.parallel import gathered
from flaxtrain.spec.phases import shortened
from flaxtrain.text import counted
from flaxtrain.train import Recipe, TrainState
from flaxtrain.tree import named_leaves

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["hurried", "smoke"]

_TWO = 2
"""Steps of everything: the first one alone would not show what the first one leaves behind."""


def smoke(trainer: Trainer, call: FitCall) -> FitResult:
    """Runs two batches of each phase, two of evaluation, and writes and restores a checkpoint.

    It always begins anew: going on from a state or a checkpoint is not tried.

    Args:
        trainer: the trainer, which stays as it is.
        call: the arguments of `fit`.

    Raises:
        FlaxtrainError: what the run itself would have met.
        DebugError: the checkpoint is restored to another state.
    """
    stream, _ = training_stream(call.ds, call.batch_size, trainer.seed)
    horizon = horizon_of(stream, call.steps, call.epochs, trainer.spec.accumulation)
    whole = recipe_of(trainer, stream, horizon)
    recipe = hurried(whole, horizon)
    each = _TWO * recipe.spec.accumulation.count
    few, eval_ds = few_batches(stream), call.eval_ds
    if eval_ds is not None:
        size = call.batch_size if is_arrays(eval_ds) else None
        eval_ds = few_batches(stream_in_order(eval_ds, size))
    with scratch(trainer.workdir) as directory:
        writes = trainer.workdir is not None
        rehearsal = twin_of(
            trainer,
            recipe=recipe,
            spec=recipe.spec,
            log_every=each,
            workdir=directory if writes else None,
            hooks=tuple(
                hook.elsewhere(directory / f"hook_{number}_{jax.process_index()}")
                for number, hook in enumerate(trainer.hooks)
            ),
        )
        result = rehearsal.fit(
            few,
            steps=each * len(recipe.assignment.phases),
            eval_ds=eval_ds,
            eval_every=None if eval_ds is None else each,
            cache_frozen=call.cache_frozen,
        )
        saved = latest(directory / CHECKPOINTS) if writes else None
        # All take part in this, also one that does not see yet what process 0 has written.
        state = gathered(result.state.resumable()) if writes else result.state
        if saved is not None:
            again = continued(recipe, few, trainer.seed, saved).state
            _check_restored(state, again, saved)
    say(trainer, *_summary(whole, recipe, result, each, saved), *_not_tried(trainer))
    return result


def hurried(recipe: Recipe, horizon: Horizon) -> Recipe:
    """Returns the recipe of a run with the same phases, each of them two updates long.

    Args:
        recipe: the recipe of any phase.
        horizon: the length of the run; phases that begin after its end are left out.
    """
    # Rounded up: an update may be begun that the run does not end.
    updates = horizon.batches and math.ceil(horizon.batches / horizon.batches_per_update)
    phases = shortened(recipe.assignment.phases, _TWO, updates)
    # No phase of the new ones has this index: `at` makes the recipe of the first from scratch.
    none = replace(phases[0], index=-1)
    table = replace(recipe.assignment, phases=phases)
    return recipe.changed(assignment=table, phase=none).at(0)


def _check_restored(state: TrainState, again: TrainState, path: Path) -> None:
    pairs = zip(_bits(state), _bits(again), strict=True)
    for (name, one), (_, other) in pairs:
        if one.dtype != other.dtype or one.tobytes() != other.tobytes():
            raise DebugError(
                f"{name} is not restored as it was saved",
                where=f"fit(debug='smoke'), checkpoint {path.name}",
                fix="look for arrays that the state holds and a file can't",
            )


def _bits(state: TrainState) -> list[tuple[str, np.ndarray]]:
    plain = state.replace(rng=jax.random.key_data(state.rng))
    return [(name, np.asarray(leaf)) for name, leaf in named_leaves(plain)]


def _not_tried(trainer: Trainer) -> list[str]:
    """Returns what the run would go on from, in words, if there is such a thing."""
    workdir = trainer.workdir
    found = None if workdir is None else latest(workdir / CHECKPOINTS)
    if trainer.state is None and found is None:
        return []
    source = f"{found}" if trainer.state is None else "the trainer's state"
    return [f"it began anew; going on from {source} was not tried"]


def _summary(
    whole: Recipe, recipe: Recipe, result: FitResult, each: int, saved: Path | None
) -> list[str]:
    """Returns what was done, as sentences."""
    phases = len(recipe.assignment.phases)
    where = f" in each of {phases} phases" if phases > 1 else ""
    parts = [
        f"{counted(each, 'batch', 'batches')} of training{where}",
        counted(len(result.history.train), "log point"),
    ]
    if result.history.val:
        parts.append(f"{counted(len(result.history.val), 'evaluation')} of 2 batches at most")
    if saved is not None:
        parts.append("a checkpoint, restored to the same state")
    lines = [f"debug='smoke': {', '.join(parts)}; nothing of it is kept"]
    later = len(whole.assignment.phases) - phases
    if later:
        lines.append(f"{counted(later, 'phase')} after the end of the run: not entered")
    skipped = int(result.state.counters.skipped)
    if skipped:
        steps = counted(skipped, "step")
        lines.append(f"rejected: {steps}, so the last phases may be missing")
    return lines
