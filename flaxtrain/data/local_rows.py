"""The rows of every batch that one of several processes reads.

Arrays are the whole data set, the same in every process, which takes its part of each batch. An
iterable yields the rows of its own process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxtrain.data.alignment import AlignedStream, unaligned
from flaxtrain.data.padding import HostBatch
from flaxtrain.data.stream import ArrayStream, Stream

__all__ = [
    "LocalRows",
    "as_given",
    "batch_as_given",
    "is_whole",
    "local_rows_of",
    "rows_as_given",
]


@dataclass(frozen=True)
class LocalRows:
    """A stream whose epochs yield the rows of one process; all else is about whole batches.

    See `Stream` for the members. What `example` returns has the rows of all processes.

    Attributes:
        source: the stream: of whole batches, or of this process's rows.
        processes: how many there are.
        part: from the rows of a whole batch to which of them are this process's; None: `source`
            yields these alone.
    """

    source: Stream
    processes: int
    part: Callable[[int], slice | np.ndarray] | None

    @property
    def rows(self) -> int:
        """Rows of every batch, those of all processes together."""
        return self.source.rows * (1 if self.part else self.processes)

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per epoch, None if unknown."""
        return self.source.batches_per_epoch

    @property
    def examples_per_epoch(self) -> int | None:
        """Real rows per epoch, None if unknown."""
        return self.source.examples_per_epoch if self.part else None

    @property
    def may_be_padded(self) -> bool:
        """False only when it is certain that no process has a padded batch.

        The rows of other processes are not known here, and all of them run one program.
        """
        return self.part is None or self.source.may_be_padded

    @property
    def seekable(self) -> bool:
        """Whether skipping costs no reading."""
        return self.source.seekable

    @property
    def repeats(self) -> bool:
        """Whether there can be a second epoch."""
        return self.source.repeats

    @property
    def description(self) -> str:
        """One line for logs."""
        how = "a part of each batch" if self.part else "their own batches"
        return f"{self.source.description}; {self.processes} processes read {how}"

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0; other processes' rows are copies where unread."""
        batch = self.source.example()
        if self.part:
            return batch

        def repeated(leaf: Any) -> np.ndarray:
            return np.concatenate([np.asarray(leaf)] * self.processes)

        data, mask = jax.tree.map(repeated, (batch.data, batch.mask))
        return HostBatch(data, mask, batch.count * self.processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns this process's rows of the batches of one epoch, from number `start` on."""
        found = self.source.epoch(epoch, start)
        if self.part is None:
            return (HostBatch(b.data, b.mask, b.count * self.processes) for b in found)
        part = self.part(self.rows)

        def cut(batch: HostBatch) -> HostBatch:
            data, mask = jax.tree.map(lambda leaf: leaf[part], (batch.data, batch.mask))
            return HostBatch(data, mask, batch.count)

        return map(cut, found)


def local_rows_of(
    stream: Stream, processes: int, part: Callable[[int], slice | np.ndarray]
) -> LocalRows:
    """Returns what one of several processes reads of a stream.

    Args:
        stream: the data, as this process was given them.
        processes: how many there are.
        part: from the rows of a whole batch to which of them are this process's: a range, or
            their numbers.

    Example:
        >>> from flaxtrain.data import as_stream
        >>> stream = as_stream({"x": np.arange(8)}, batch_size=4)
        >>> mine = local_rows_of(stream, 2, lambda rows: slice(rows // 2, rows))
        >>> mine.rows, [batch.data["x"].tolist() for batch in mine.epoch(0)]
        (4, [[2, 3], [6, 7]])
    """
    return LocalRows(stream, processes, part if is_whole(stream) else None)


def as_given(stream: Stream) -> Stream:
    """Returns a stream as the user gave it, where that has whole batches.

    Example:
        >>> from flaxtrain.data import aligned, as_stream
        >>> as_given(aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4)).rows
        6
    """
    if isinstance(stream, LocalRows) and stream.part:
        stream = stream.source
    return unaligned(stream)


def rows_as_given(stream: Stream) -> int:
    """Returns the rows of a batch of all processes, those added for devices not counted.

    Example:
        >>> from flaxtrain.data import aligned, as_stream
        >>> rows_as_given(aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4))
        6
    """
    if isinstance(stream, LocalRows) and stream.part is None:
        return unaligned(stream.source).rows * stream.processes
    return as_given(stream).rows


def batch_as_given(stream: Stream, data: Any, mask: Any) -> tuple[Any, Any]:
    """Returns data and mask of a whole batch as the user gave them.

    Rows that were added for devices are left out, and so is the mask where no row of the source
    is padding.

    Args:
        stream: the data.
        data: arrays `[rows, ...]`.
        mask: bool `[rows]`, or None.

    Example:
        >>> from flaxtrain.data import aligned, as_stream
        >>> stream = aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4)
        >>> batch = stream.example()
        >>> data, mask = batch_as_given(stream, batch.data, batch.mask)
        >>> data["x"].tolist(), mask
        ([0, 1, 2, 3, 4, 5], None)
    """
    whole = stream.source if isinstance(stream, LocalRows) and stream.part else stream
    if not isinstance(whole, AlignedStream):
        return data, mask
    data, mask = whole.without_padding((data, mask))
    return data, mask if whole.source.may_be_padded else None


def is_whole(stream: Stream) -> bool:
    """Returns whether a stream has the batches of all processes, as one of arrays does."""
    return isinstance(unaligned(stream), ArrayStream)
