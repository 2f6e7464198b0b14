"""A stream around another one: what most wrappers leave as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flaxtrain.data.padding import HostBatch
from flaxtrain.data.stream import Stream

__all__ = ["StreamAround"]


@dataclass(frozen=True)
class StreamAround:
    """A stream that is as its source; wrappers override what differs. See `Stream`.

    Attributes:
        source: the stream within.
    """

    source: Stream

    @property
    def rows(self) -> int:
        """Rows of every batch."""
        return self.source.rows

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per epoch, None if unknown."""
        return self.source.batches_per_epoch

    @property
    def examples_per_epoch(self) -> int | None:
        """Real rows per epoch, None if unknown."""
        return self.source.examples_per_epoch

    @property
    def may_be_padded(self) -> bool:
        """Whether a batch of the source may be padded."""
        return self.source.may_be_padded

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
        return self.source.description

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0, without taking it out of the stream."""
        return self.source.example()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the batches of one epoch from batch number `start` on."""
        return self.source.epoch(epoch, start)
