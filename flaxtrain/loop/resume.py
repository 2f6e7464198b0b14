"""Continuing the run that a workdir holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flaxtrain import checkpoint
from flaxtrain.data import Stream
from flaxtrain.errors import CheckpointError
from flaxtrain.loop.plan import spec_data
from flaxtrain.train import Recipe, TrainState

__all__ = ["CHECKPOINTS", "data_facts", "initial_or_resumed"]

CHECKPOINTS = "checkpoints"
"""Where a workdir keeps its checkpoints."""


def data_facts(stream: Stream, seed: int) -> dict[str, Any]:
    """Returns what decides the order of the examples, for a later resume to compare."""
    return {
        "seed": seed,
        "batch_size": stream.rows,
        "steps_per_epoch": stream.steps_per_epoch,
        "examples_per_epoch": stream.examples_per_epoch,
    }


def initial_or_resumed(
    recipe: Recipe, stream: Stream, seed: int, workdir: Path | None, notes: list[str]
) -> TrainState:
    """Returns the state of the workdir's last checkpoint, or the state before the first step.

    Args:
        recipe: what does not change in the run.
        stream: the training data; differences from the checkpoint's are noted.
        seed: for the state before the first step.
        workdir: the run's directory, or None.
        notes: is told about a checkpoint that is used, and about what differs since.

    Raises:
        CheckpointError: the checkpoint was made with another spec, or does not fit the model.
    """
    state = recipe.init(seed)
    if workdir is None:
        return state
    checkpoint.clean_up(workdir / CHECKPOINTS)
    found = checkpoint.latest(workdir / CHECKPOINTS)
    if found is None:
        return state
    meta = checkpoint.read_meta(found)
    before, now = meta.get("spec"), spec_data(recipe.spec)
    if before is None or now is None:
        notes.append(
            "the optimizer spec holds code: whether it is that of the run is not known"
        )
    elif before != now:
        raise CheckpointError(
            "the run in the workdir was made with another optimizer spec, or with another "
            "length where the spec has relative durations",
            where=str(found),
            fix="use the same spec and total, or another workdir",
        )
    notes.append(f"continuing the run in {workdir}, checkpoint {found.name}")
    notes += checkpoint.environment_differences(found)
    data = meta.get("data", {})
    notes += [
        f"{name} was {data.get(name)} and is {value}: not the examples that would have followed"
        for name, value in data_facts(stream, seed).items()
        if data.get(name) != value
    ]
    return checkpoint.restore(found, like=state).resumable()
