"""What a step function is called with, judged before anything is traced."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState

# Nothing here is public: the step functions raise what this raises.
__all__ = []


def check_call(recipe: Any, state: Any, batch: Any, *, where: str, mask: Any = None) -> None:
    """Refuses what is no recipe, no state, no batch, or a mask of another batch.

    Args:
        recipe: should be a `Recipe`.
        state: should be a `TrainState`.
        batch: should hold arrays.
        where: the step function.
        mask: should be None, or have one entry per row.

    Raises:
        ArgumentTypeError: one of them is of another type.
        ArgumentError: the mask has another shape.
    """
    for name, value, kind, fix in (
        ("recipe", recipe, Recipe, "pass what ft.make_recipe returned"),
        ("state", state, TrainState, "pass recipe.init(seed), or what train_step returned"),
    ):
        if not isinstance(value, kind):
            raise ArgumentTypeError(
                f"{name} is a {type(value).__name__}, not a {kind.__name__}",
                where=where,
                fix=fix,
            )
    leaves = jax.tree.leaves(batch)
    if not leaves:
        raise ArgumentTypeError(
            f"the batch, a {type(batch).__name__}, holds no array",
            where=where,
            fix="pass a dict or tuple of arrays, one row per example",
        )
    rows = np.shape(leaves[0])[:1]
    if mask is not None and np.shape(mask) != rows:
        raise ArgumentError(
            f"mask has shape {np.shape(mask)}, not that of the rows of the batch, {rows}",
            where=where,
            fix="pass one bool per row, or None for a full batch",
        )


def check_norms(norms: Any) -> None:
    """Refuses what is no bool, known now or traced.

    Raises:
        ArgumentTypeError: it is something else.
    """
    is_array = getattr(norms, "dtype", None) == np.bool_ and np.shape(norms) == ()
    if not (isinstance(norms, bool) or is_array):
        raise ArgumentTypeError(
            f"norms={norms!r} is a {type(norms).__name__}, not True or False",
            where="train_step",
            fix="pass a bool, or a bool scalar that is traced",
        )
