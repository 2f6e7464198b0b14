"""Batches with padding rows, and the models and losses for which they can't be left out."""

from __future__ import annotations

from flaxtrain.data import HostBatch, Stream
from flaxtrain.loop.length import surely_ragged
from flaxtrain.train import Recipe
from flaxtrain.typing import ArrayLike

__all__ = ["check_padding", "checked_mask"]


def check_padding(recipe: Recipe, stream: Stream) -> None:
    """Refuses data that is known to need padding, before any batch is read.

    Raises:
        FlaxtrainError: padding is not exact, `Recipe.padding_problem`.
    """
    if recipe.padding_problem is not None and surely_ragged(stream):
        raise recipe.padding_problem


def checked_mask(
    recipe: Recipe, stream: Stream, batch: HostBatch, *, always: bool = False
) -> ArrayLike | None:
    """Returns the row mask of a batch; None where no batch has padding, or it is refused.

    Args:
        recipe: what does not change in the run.
        stream: the data.
        batch: a batch of it.
        always: whether a batch of data without any padding has its mask too, so that one
            program serves all data.

    Raises:
        FlaxtrainError: the batch has padding rows, and padding is not exact.
    """
    if recipe.padding_problem is None:
        return batch.mask if always or stream.may_be_padded else None
    if batch.count < stream.rows:
        raise recipe.padding_problem
    return None
