"""Continuing the run that a workdir holds."""

from __future__ import annotations

from pathlib import Path

from flaxtrain import checkpoint
from flaxtrain.errors import CheckpointError
from flaxtrain.loop.plan import spec_data
from flaxtrain.train import Recipe, TrainState

__all__ = ["CHECKPOINTS", "initial_or_resumed"]

CHECKPOINTS = "checkpoints"
"""Where a workdir keeps its checkpoints."""


def initial_or_resumed(
    recipe: Recipe, seed: int, workdir: Path | None, notes: list[str]
) -> TrainState:
    """Returns the state of the workdir's last checkpoint, or the state before the first step.

    Args:
        recipe: what does not change in the run.
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
    before, now = checkpoint.read_meta(found).get("spec"), spec_data(recipe.spec)
    if before != now:
        raise CheckpointError(
            "the run in the workdir was made with another optimizer spec, or with another "
            "length where the spec has relative durations",
            where=str(found),
            fix="use the same spec and total, or another workdir",
        )
    notes.append(f"continuing the run in {workdir}, checkpoint {found.name}")
    notes += checkpoint.environment_differences(found)
    return checkpoint.restore(found, like=state)
