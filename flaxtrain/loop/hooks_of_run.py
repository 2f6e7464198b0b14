"""The hooks of a run: those that are given, and those that every run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.loop.hooks import Console, Hook, SaveEvery, TensorBoard
from flaxtrain.parallel import is_writer
from flaxtrain.text import kind_of

__all__ = ["all_hooks", "check_hooks"]


def check_hooks(hooks: Any) -> tuple[Hook, ...]:
    """Refuses anything in `hooks` that is not a `Hook`."""
    if not isinstance(hooks, (tuple, list)):
        raise ArgumentTypeError(
            f"{hooks!r} is {kind_of(hooks)}, not a list of hooks",
            where="Trainer(hooks=...)",
            fix="pass a list: hooks=[...]",
        )
    for index, hook in enumerate(hooks):
        if not isinstance(hook, Hook):
            raise ArgumentTypeError(
                f"{hook!r} is not a Hook",
                where=f"Trainer(hooks=...), number {index}",
                fix="pass an instance of a class derived from ft.Hook",
            )
    return tuple(hooks)


def all_hooks(
    given: tuple[Hook, ...], evaluation: tuple[Hook, ...], verbose: bool, workdir: Path | None
) -> tuple[Hook, ...]:
    """Returns a run's hooks: console, curves, evaluation, the user's, saving at the end.

    Of several processes one writes; the hooks of the user run in all of them.
    """
    console = (Console(),) if verbose and is_writer() else ()
    curves = (TensorBoard(),) if workdir is not None and is_writer() else ()
    saves = workdir is not None and not any(isinstance(hook, SaveEvery) for hook in given)
    return (*console, *curves, *evaluation, *given, *((SaveEvery(),) if saves else ()))
