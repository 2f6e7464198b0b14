"""A loss function to copy, written with the keys of the batch at hand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from flaxtrain.data.padding import is_weight
from flaxtrain.typing import Batch

__all__ = []  # for the other modules of this room

TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""Entries of a dict batch that are targets."""


def is_reserved(batch: Batch, key: str) -> bool:
    """Whether an entry is a target or weighs the examples, and so is no input by itself.

    Example:
        >>> is_reserved({"label": jnp.zeros(2)}, "label"), is_reserved({"x": jnp.zeros(2)}, "x")
        (True, False)
    """
    return key in TARGET_KEYS or is_weight(batch, key)


def misspelt_target(key: str) -> str | None:
    """Returns the name of a target that `key` is a slip of, if it is one.

    The bar is higher than for other names: `image` is nearer to `target` than chance would be.

    Example:
        >>> misspelt_target("lable"), misspelt_target("image")
        ('label', None)
    """
    return next(iter(difflib.get_close_matches(key, TARGET_KEYS, n=1, cutoff=0.75)), None)


def loss_example(batch: Batch, argument_names: Sequence[str] = ()) -> str:
    """Returns Python code of a loss function for such batches, as lines below an error's fix.

    Args:
        batch: the batch that could not be used.
        argument_names: the arguments of `__call__`; entries of these names are taken as inputs.

    Example:
        >>> print(loss_example({"x": jnp.zeros((4, 8)), "price": jnp.zeros(4)}, ["x"]))
        <BLANKLINE>
               def loss_fn(model, batch):
                   prediction = model(batch['x'])
                   return ft.losses.squared_error(prediction, batch['price'])
               trainer = ft.Trainer(model, spec, loss=loss_fn)
    """
    inputs, wanted = _keys(batch, argument_names)
    value = batch if wanted is None else batch[wanted]
    written = ", ".join(_written(key) for key in inputs)
    lines = (
        "def loss_fn(model, batch):",
        f"    prediction = model({written})",
        f"    return ft.losses.{_loss(value)}(prediction, {_written(wanted)}){_average(value)}",
        "trainer = ft.Trainer(model, spec, loss=loss_fn)",
    )
    return "".join(f"\n       {line}" for line in lines)


def _keys(batch: Batch, argument_names: Sequence[str]) -> tuple[list[Any], Any]:
    """Guesses the keys of the inputs and of the target; None stands for the batch itself."""
    if isinstance(batch, tuple):
        return [0], min(1, len(batch) - 1)
    if not isinstance(batch, Mapping):
        return [None], None
    targets = [key for key in batch if key in TARGET_KEYS]
    likely = targets or [key for key in batch if misspelt_target(key)]
    others = [key for key in batch if key not in likely and not is_reserved(batch, key)]
    if not likely:
        unnamed = [key for key in others if key not in argument_names]
        likely = (unnamed or others or list(batch))[-1:]
    inputs = [key for key in argument_names if key in others]
    return inputs or [key for key in others if key != likely[0]] or likely, likely[0]


def _written(key: Any) -> str:
    return "batch" if key is None else f"batch[{key!r}]"


def _loss(value: Any) -> str:
    integers = jnp.issubdtype(getattr(value, "dtype", jnp.float32), jnp.integer)
    return "softmax_cross_entropy_with_integer_labels" if integers else "squared_error"


def _average(value: Any) -> str:
    """A loss function returns one number per example."""
    axes = tuple(range(1, getattr(value, "ndim", 1)))
    return f".mean(axis={axes})" if axes else ""
