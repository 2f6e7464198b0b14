"""The first batches of a data set, as a data set, and the first one as a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import jax
import numpy as np

from flaxtrain.data import HostBatch, Stream
from flaxtrain.data.around import StreamAround
from flaxtrain.data.stream import ArrayStream
from flaxtrain.typing import HostTree

__all__ = ["FirstBatches", "few_batches", "sample_of"]


@dataclass(frozen=True)
class FirstBatches(StreamAround):
    """The first batches of each epoch of a stream; see `Stream` for the members.

    Attributes:
        source: the stream.
        count: how many batches.
    """

    count: int

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per epoch, None if the source doesn't know."""
        length = self.source.batches_per_epoch
        return None if length is None else min(self.count, length)

    @property
    def examples_per_epoch(self) -> int | None:
        """Not known."""
        return None

    @property
    def description(self) -> str:
        """One line for logs."""
        return f"the first {self.count} batches of {self.source.description}"

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the first batches of one epoch, from batch number `start` on."""
        return islice(self.source.epoch(epoch, start), max(0, self.count - start))


def few_batches(stream: Stream, count: int = 2) -> Stream:
    """Returns a stream of `count` batches at most; of arrays, a smaller last one is among them.

    Example:
        >>> import numpy as np
        >>> from flaxtrain.data import as_stream
        >>> stream = few_batches(as_stream({"x": np.arange(11)}, batch_size=4))
        >>> [batch.count for batch in stream.epoch(0)]
        [4, 3]
    """
    if not isinstance(stream, ArrayStream):
        return FirstBatches(stream, count)
    source = stream.source
    ragged = source.examples % stream.rows if not source.drop_remainder else 0
    size = min(source.examples, count * stream.rows)
    if ragged and size < source.examples:
        size = (count - 1) * stream.rows + ragged
    arrays = jax.tree.map(lambda leaf: leaf[:size], source.arrays)
    return replace(stream, source=replace(source, arrays=arrays))


def sample_of(stream: Stream, microbatches: int = 1) -> HostTree:
    """Returns the first batch without its padding, as a batch that divides into microbatches.

    Rows at the end are left out until it does. Where there are fewer rows than microbatches,
    they are repeated from the first one on until there is one for each.

    Args:
        stream: its first batch is copied: a source may fill one buffer again and again.
        microbatches: the number of rows is a multiple of this, at least 1.

    Example:
        >>> from flaxtrain.data import as_stream
        >>> stream = as_stream({"x": np.arange(10)}, batch_size=16)
        >>> sample_of(stream, microbatches=4)["x"].tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    first = stream.example()
    rows = max(first.count - first.count % microbatches, microbatches)
    chosen = np.arange(rows) % first.count
    return jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], first.data)
