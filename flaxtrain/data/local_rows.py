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
from flaxtrain.data.around import StreamAround
from flaxtrain.data.padding import HostBatch
from flaxtrain.data.stream import ArrayStream, Stream

__all__ = [
    "LocalRows",
    "OwnBatches",
    "PartOfBatches",
    "as_given",
    "batch_as_given",
    "is_whole",
    "local_rows_of",
    "rows_as_given",
]


@dataclass(frozen=True)
class LocalRows(StreamAround):
    """A stream whose epochs yield the rows of one process; all else is about whole batches.

    See `Stream` for the members. What `example` returns has the rows of all processes.

    Attributes:
        source: the stream, as this process was given it.
        processes: how many there are.
    """

    processes: int

    @property
    def description(self) -> str:
        """One line for logs."""
        return f"{self.source.description}; {self.processes} processes read {self._read}"

    _read = "a part of each batch"


@dataclass(frozen=True)
class PartOfBatches(LocalRows):
    """This process's rows of whole batches. See `LocalRows`.

    Attributes:
        source: the stream of whole batches, the same in all processes.
        processes: how many there are.
        part: from the rows of a whole batch to which of them are this process's.
    """

    part: Callable[[int], slice | np.ndarray]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns this process's rows of the batches of one epoch, from number `start` on."""
        part = self.part(self.rows)

        def cut(batch: HostBatch) -> HostBatch:
            data, mask = jax.tree.map(lambda leaf: leaf[part], (batch.data, batch.mask))
            return HostBatch(data, mask, batch.count)

        return map(cut, self.source.epoch(epoch, start))


@dataclass(frozen=True)
class OwnBatches(LocalRows):
    """The batches of this process alone, of which whole batches are made. See `LocalRows`."""

    _read = "their own batches"

    @property
    def rows(self) -> int:
        """Rows of every batch, those of all processes together."""
        return self.source.rows * self.processes

    @property
    def examples_per_epoch(self) -> None:
        """Not known: those of other processes are not read here."""
        return None

    @property
    def may_be_padded(self) -> bool:
        """True: the rows of other processes are not known, and all of them run one program."""
        return True

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0, with copies in place of other processes' rows."""
        batch = self.source.example()

        def repeated(leaf: Any) -> np.ndarray:
            return np.concatenate([np.asarray(leaf)] * self.processes)

        data, mask = jax.tree.map(repeated, (batch.data, batch.mask))
        return HostBatch(data, mask, batch.count * self.processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns this process's rows of the batches of one epoch, from number `start` on."""
        found = self.source.epoch(epoch, start)
        return (HostBatch(b.data, b.mask, b.count * self.processes) for b in found)


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
    if is_whole(stream):
        return PartOfBatches(stream, processes, part)
    return OwnBatches(stream, processes)


def as_given(stream: Stream) -> Stream:
    """Returns a stream as the user gave it, where that has whole batches.

    Example:
        >>> from flaxtrain.data import as_stream
        >>> from flaxtrain.data.alignment import aligned
        >>> as_given(aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4)).rows
        6
    """
    if isinstance(stream, PartOfBatches):
        stream = stream.source
    return unaligned(stream)


def rows_as_given(stream: Stream) -> int:
    """Returns the rows of a batch of all processes, those added for devices not counted.

    Example:
        >>> from flaxtrain.data import as_stream
        >>> from flaxtrain.data.alignment import aligned
        >>> rows_as_given(aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4))
        6
    """
    if isinstance(stream, OwnBatches):
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
        >>> from flaxtrain.data import as_stream
        >>> from flaxtrain.data.alignment import aligned
        >>> stream = aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4)
        >>> batch = stream.example()
        >>> data, mask = batch_as_given(stream, batch.data, batch.mask)
        >>> data["x"].tolist(), mask
        ([0, 1, 2, 3, 4, 5], None)
    """
    whole = stream.source if isinstance(stream, PartOfBatches) else stream
    if not isinstance(whole, AlignedStream):
        return data, mask
    data, mask = whole.without_padding((data, mask))
    return data, mask if whole.source.may_be_padded else None


def is_whole(stream: Stream) -> bool:
    """Returns whether a stream has the batches of all processes, as one of arrays does."""
    return isinstance(unaligned(stream), ArrayStream)
