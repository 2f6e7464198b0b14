"""What debugging runs have in common: a trainer that is thrown away afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import DataError
from flaxtrain.loop.length import used_up_by_one_pass
from flaxtrain.loop.programs import Programs
from flaxtrain.monitor import ConsoleWriter
from flaxtrain.train import Recipe

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["check_lasting", "recipe_of", "say", "twin_of"]


def twin_of(
    trainer: Trainer,
    *,
    goes_on: bool = False,
    recipe: Recipe | None = None,
    programs: Callable[[int], Programs] = Programs,
    **attributes: Any,
) -> Trainer:
    """Returns a trainer with the arguments of another one, which does not share its state.

    Args:
        trainer: the other one.
        goes_on: whether the twin begins with a copy of its state, if there is one.
        recipe: what the twin trains with; None: what its own arguments say.
        programs: makes its compiled functions from `log_every`.
        **attributes: attributes that differ from those of the original.
    """
    twin, state = copy.copy(trainer), None
    if goes_on and trainer.state is not None:
        # A copy: a training step is given the state to keep.
        recipe, state = trainer.recipe, jax.tree.map(jnp.copy, trainer.state)
    for name, value in {**attributes, "state": state, "recipe": recipe}.items():
        setattr(twin, name, value)
    twin._fitted, twin._programs = recipe is not None, programs(twin.log_every)
    if recipe is not None:
        twin._programs.forget(twin._devices.engine(recipe.facts))
    return twin


def recipe_of(trainer: Trainer, stream: Stream, horizon: Horizon, **attributes: Any) -> Recipe:
    """Returns what does not change in a run that a twin would make; the trainer stays as it is.

    Args:
        trainer: what the twin is of.
        stream: the training data.
        horizon: the length of the run.
        **attributes: attributes that differ from those of the original.
    """
    return twin_of(trainer, **attributes)._build(stream, horizon)


def check_lasting(ds: Any, *, where: str) -> None:
    """Refuses a data set that is used up by looking at it.

    Raises:
        DataError: `ds` can be iterated once only.
    """
    if ds is not None and used_up_by_one_pass(ds):
        raise DataError(
            f"the {type(ds).__name__} can be iterated once only: its batches would be missing "
            "in the run that follows",
            where=where,
            fix="pass arrays, a list of batches, or a function that returns a new iterator",
        )


def say(trainer: Trainer, *lines: str) -> None:
    """Prints lines, unless the trainer is silent."""
    if trainer.verbose:
        for line in lines:
            ConsoleWriter().write_line(line)
