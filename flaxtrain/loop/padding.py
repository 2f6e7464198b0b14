"""Batches with padding rows, and the models and losses for which they can't be left out."""

from __future__ import annotations

from flaxtrain.data import HostBatch, Stream
from flaxtrain.data.alignment import AlignedStream
from flaxtrain.data.local_rows import LocalRows
from flaxtrain.errors import FlaxtrainError
from flaxtrain.text import counted
from flaxtrain.train import Recipe
from flaxtrain.typing import ArrayLike

__all__ = ["check_padding", "checked_mask", "has_masks"]


def check_padding(recipe: Recipe, stream: Stream) -> None:
    """Refuses data that is known to need padding, before any batch is read.

    Raises:
        FlaxtrainError: padding is not exact, `Recipe.padding_problem`.
    """
    if recipe.padding_problem is not None and _surely_ragged(stream):
        raise _refusal(recipe.padding_problem, stream)


def _refusal(problem: FlaxtrainError, stream: Stream) -> FlaxtrainError:
    """Returns the error for padding rows; it says so where devices are what they are for."""
    source = stream.source if isinstance(stream, LocalRows) else stream
    if not isinstance(source, AlignedStream):
        return problem
    multiple = source.multiple * source.microbatches
    microbatches = (
        f", {counted(source.microbatches, 'microbatch', 'microbatches')}"
        if source.microbatches > 1
        else ""
    )
    return type(problem)(
        f"batches of {source.source.rows} rows do not divide among {source.multiple} devices"
        f"{microbatches}, and they can't be padded: {problem.found}",
        where=problem.where,
        fix=f"pass batches of a multiple of {multiple} rows; or {problem.fix}",
        details=problem.details,
    )


def _surely_ragged(stream: Stream) -> bool:
    """Whether it is known beforehand that a batch will need padding."""
    length, examples = stream.batches_per_epoch, stream.examples_per_epoch
    return bool(
        stream.may_be_padded and length and examples and length * stream.rows != examples
    )


def has_masks(recipe: Recipe, stream: Stream, *, always: bool = False) -> bool:
    """Whether the batches of a stream go with a row mask.

    Args:
        recipe: what does not change in the run.
        stream: the data.
        always: as for `checked_mask`.
    """
    return recipe.padding_problem is None and (always or stream.may_be_padded)


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
    if has_masks(recipe, stream, always=always):
        return batch.mask
    if recipe.padding_problem is not None and batch.count < stream.rows:
        raise _refusal(recipe.padding_problem, stream)
    return None
