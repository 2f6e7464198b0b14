"""What a plan says about where the first values of a run come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flaxtrain import checkpoint
from flaxtrain.checkpoint import CHECKPOINTS
from flaxtrain.params import Restore
from flaxtrain.text import counted
from flaxtrain.train import Recipe, TrainState

# Nothing here is public: `Plan` prints it.
__all__ = []


def planned_start(
    recipe: Recipe, state: TrainState | None, workdir: Path | None, init_from: Restore | None
) -> tuple[str, ...]:
    """Returns sentences about where a run's first values come from; none where all are drawn.

    No array of a file is read: whether a source fits is found out when the run begins.

    Args:
        recipe: the recipe of any phase.
        state: the trainer's state, or None.
        workdir: the run's directory, or None.
        init_from: where the weights of a run that begins come from.
    """
    if state is not None:
        return (f"the trainer's state after {counted(int(state.step), 'update')}",)
    found = None if workdir is None else checkpoint.latest(workdir / CHECKPOINTS)
    if found is not None:
        own = "" if init_from is None else "; init_from= is not read again"
        return (f"checkpoint {found.name} of the run in {workdir}, which goes on{own}",)
    lines = [] if init_from is None else ["; ".join(_restored(init_from))]
    if recipe.adapters is not None:
        lines.append(f"{recipe.adapters!r}; with them the model begins as it is without")
    return tuple(lines)


def _restored(init_from: Restore) -> Iterator[str]:
    """Yields what is known about a restore before its source is read."""
    yield f"weights from {init_from.source_text()}"
    if init_from.rename:
        pairs = (f"{old!r} to {new!r}" for old, new in init_from.rename.items())
        yield f"renamed: {', '.join(pairs)}"
    if init_from.skip:
        yield f"skipped: {', '.join(init_from.skip)}"
    if init_from.reshape:
        named = {k: getattr(v, "__name__", v) for k, v in init_from.reshape.items()}
        yield f"reshaped: {', '.join(f'{path} by {how}' for path, how in named.items())}"
    if init_from.dtype == "cast":
        yield "other dtypes are cast"
    if not init_from.strict:
        yield "what is missing keeps its initial value, what is unused is left"
