"""What a step function is called with, judged before anything is traced."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_instance
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.text import kind_of
from flaxtrain.train.recipe import Recipe
from flaxtrain.train.state import TrainState

# Nothing here is public: those who call it raise what this raises.
__all__ = []


def check_call(recipe: Any, state: Any, batch: Any, *, where: str, mask: Any = None) -> None:
    """Refuses what is no recipe, no state, no batch, or a mask of another batch.

    Args:
        recipe: should be a `Recipe`.
        state: should be a `TrainState`.
        batch: should hold arrays.
        where: the step function.
        mask: should be None, or have one bool per row.

    Raises:
        ArgumentTypeError: one of them is of another type.
        ArgumentError: the mask has another shape or dtype.
    """
    for name, value, kind, fix in (
        ("recipe", recipe, Recipe, "pass what ft.make_recipe returned"),
        ("state", state, TrainState, "pass recipe.init(seed), or what train_step returned"),
    ):
        check_instance(name, value, kind, where=where, fix=fix, show=False)
    leaves = jax.tree.leaves(batch)
    if not leaves:
        raise ArgumentTypeError(
            f"the batch, {kind_of(batch)}, holds no array",
            where=where,
            fix="pass a dict or tuple of arrays, one row per example",
        )
    if mask is not None:
        check_mask(mask, np.shape(leaves[0])[:1], where=where)


def check_mask(mask: Any, rows: tuple[int, ...], *, where: str) -> None:
    """Refuses a mask of another batch, and one that is not of bools.

    Args:
        mask: should be bool, of the shape `rows`.
        rows: the shape of one value per row, of as many as the batch has.
        where: the function that was called.

    Raises:
        ArgumentError: it has another shape or dtype.
    """
    found = None
    try:
        given = mask if hasattr(mask, "dtype") else jnp.asarray(mask)
    except (TypeError, ValueError):
        found = f"mask is {kind_of(mask)}, not an array of bools"
    else:
        if given.shape != rows:
            found = f"mask has shape {given.shape}, not that of the rows of the batch, {rows}"
        elif given.dtype != np.bool_:
            found = f"mask is {given.dtype}, not bool"
    if found is not None:
        raise ArgumentError(
            found,
            where=where,
            fix=f"the batch has {math.prod(rows)} rows: pass a bool for each, False for "
            "padding; or None for a full batch",
        )


def check_norms(norms: Any) -> None:
    """Refuses what is no bool, known now or traced.

    Raises:
        ArgumentTypeError: it is something else.
    """
    is_array = getattr(norms, "dtype", None) == np.bool_ and np.shape(norms) == ()
    if not (isinstance(norms, bool) or is_array):
        raise ArgumentTypeError(
            f"norms={norms!r} is {kind_of(norms)}, not True or False",
            where="train_step",
            fix="pass a bool, or a bool scalar that is traced",
        )
