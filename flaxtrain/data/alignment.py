"""Batches whose rows divide among devices: padded and masked where they don't.

A batch is made of microbatches. Each is padded by itself, so that it has the same examples
whatever the number of devices: BatchNorm forms its statistics over them.

    rows 6, microbatches 2, multiple 4:   a b c d e f  ->  a b c c | d e f f
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxtrain.data.around import StreamAround
from flaxtrain.data.padding import WEIGHT_KEYS, HostBatch, is_weight
from flaxtrain.data.stream import Stream

__all__ = ["AlignedStream", "aligned", "unaligned"]


@dataclass(frozen=True)
class AlignedStream(StreamAround):
    """A stream whose batches have a number of rows that divides; see `Stream` for the members.

    Attributes:
        source: the stream as the user gave it.
        multiple: what the rows of each microbatch are a multiple of.
        microbatches: their number in a batch.
    """

    multiple: int
    microbatches: int

    @property
    def rows(self) -> int:
        """Rows of every batch, padding included."""
        return self.microbatches * self._microbatch

    @property
    def _microbatch(self) -> int:
        return -(-self.source.rows // (self.microbatches * self.multiple)) * self.multiple

    @property
    def may_be_padded(self) -> bool:
        """Always True."""
        return True

    @property
    def description(self) -> str:
        """One line for logs."""
        return f"{self.source.description}, padded to {self.rows} rows"

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0, without taking it out of the stream."""
        return self._padded(self.source.example())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the batches of one epoch from batch number `start` on."""
        return map(self._padded, self.source.epoch(epoch, start))

    def repeated(self, tree: Any) -> Any:
        """Returns arrays `[source.rows, ...]` with the last row of each microbatch repeated."""
        return jax.tree.map(self._repeated, tree)

    def without_padding(self, tree: Any) -> Any:
        """Returns arrays `[rows, ...]` as they were before they were padded.

        Example:
            >>> from flaxtrain.data import as_stream
            >>> data = as_stream({"x": np.arange(6)}, batch_size=6)
            >>> stream = aligned(data, 4, microbatches=2)
            >>> print(stream.without_padding(stream.example().data)["x"])
            [0 1 2 3 4 5]
        """
        own = self.source.rows // self.microbatches

        def cut(leaf: Any) -> np.ndarray:
            pieces = np.asarray(leaf).reshape(
                self.microbatches, self._microbatch, *leaf.shape[1:]
            )
            return pieces[:, :own].reshape(self.source.rows, *leaf.shape[1:])

        return jax.tree.map(cut, tree)

    def _padded(self, batch: HostBatch) -> HostBatch:
        data = self.repeated(batch.data)
        if isinstance(batch.data, dict):
            own = [key for key in WEIGHT_KEYS if is_weight(batch.data, key)]
            data |= {key: self._filled(batch.data[key]) for key in own}
        return HostBatch(data, self._filled(batch.mask), batch.count)

    def _repeated(self, leaf: Any) -> np.ndarray:
        return self._joined(leaf, "edge")

    def _filled(self, leaf: Any) -> np.ndarray:
        """Returns masks or weights in which zeros fill up each microbatch."""
        return self._joined(leaf, "constant")

    def _joined(self, leaf: Any, mode: Any) -> np.ndarray:
        pieces = np.reshape(leaf, (self.microbatches, -1, *leaf.shape[1:]))
        more = self._microbatch - pieces.shape[1]
        padded = np.pad(pieces, [(0, 0), (0, more), *[(0, 0)] * (leaf.ndim - 1)], mode=mode)
        return padded.reshape(self.rows, *leaf.shape[1:])


def aligned(stream: Stream, multiple: int, microbatches: int = 1) -> Stream:
    """Returns a stream whose batches divide; the same one where they do already.

    Args:
        stream: the data.
        multiple: what the rows of a microbatch are to be a multiple of: the number of shards
            that a batch is cut into.
        microbatches: their number in a batch; one that `stream.rows` is no multiple of is left
            for the training step to refuse.

    Example:
        >>> from flaxtrain.data import as_stream
        >>> stream = aligned(as_stream({"x": np.arange(6)}, batch_size=6), 4, microbatches=2)
        >>> batch = stream.example()
        >>> print(batch.data["x"], batch.mask.astype(int), batch.count)
        [0 1 2 2 3 4 5 5] [1 1 1 0 1 1 1 0] 6
    """
    if stream.rows % microbatches or (stream.rows // microbatches) % multiple == 0:
        return stream
    return AlignedStream(stream, multiple, microbatches)


def unaligned(stream: Stream) -> Stream:
    """Returns a stream without padding for devices."""
    return stream.source if isinstance(stream, AlignedStream) else stream
