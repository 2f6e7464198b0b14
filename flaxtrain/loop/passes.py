"""The passes over the training data: which batch comes, and where it stands in its epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from flaxtrain.data import HostBatch, Stream
from flaxtrain.loop.evaluation import checked
from flaxtrain.loop.feature_cache import NoCache
from flaxtrain.train import Recipe

__all__ = ["Passes"]


class Passes:
    """The batches that are still to be trained on, from a run's position on.

    Args:
        stream: the training data.
        cache: what batches carry beside their data.
        position: number of batches that were taken before.
        epochs: number of the epoch at which the run ends; None if it ends elsewhere.
    """

    def __init__(
        self, stream: Stream, cache: NoCache, position: int, epochs: int | None
    ) -> None:
        self._stream, self._cache = stream, cache
        self._position, self._epochs = position, epochs
        self._places: deque[tuple[int, int]] = deque()

    def place(self) -> tuple[int, int]:
        """Returns the epoch of the next batch, and its place there; once for each, in order.

        Batches are read ahead, so the place of the one in use is not that of the last one read.
        """
        return self._places.popleft()

    def batches(self, recipe: Recipe, left: int | None) -> Iterator[HostBatch]:
        """Yields the batches.

        Args:
            recipe: what does not change in the run; labels are checked against its output.
            left: how many are wanted; None for all that there are.

        Raises:
            DataError: a batch can't be used.
        """
        length = self._stream.batches_per_epoch
        epoch, skip = divmod(self._position, length) if length else (0, self._position)
        while (left is None or left > 0) and (self._epochs is None or epoch < self._epochs):
            start = index = skip if length else 0
            source = self._cache.epoch(self._stream, epoch, start)
            for batch in checked(recipe, source, f"epoch {epoch}", start):
                index += 1
                if index <= skip and not length:
                    continue
                if left is not None:
                    if left == 0:
                        return
                    left -= 1
                self._places.append((epoch, index - 1))
                yield batch
            epoch, skip = epoch + 1, 0 if length else max(0, skip - index)
