"""The frozen features cache: what frozen modules return, once per example and not per epoch.

The features of all examples are computed before the first step, at the batch size of training,
and kept in the memory of the host. A batch then carries the features of exactly its examples,
in whatever order they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from flaxtrain.checks import check_flag
from flaxtrain.data import HostBatch, Stream
from flaxtrain.data.alignment import AlignedStream, aligned, unaligned
from flaxtrain.data.local_rows import LocalRows
from flaxtrain.data.stream import ArrayStream
from flaxtrain.errors import ArgumentError, FlaxtrainError
from flaxtrain.loop.in_flight import Bounded
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.padding import has_masks
from flaxtrain.loop.row_check import check_rows
from flaxtrain.loop.step_programs import seeing_all
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.text import readable_bytes
from flaxtrain.train import (
    CACHE_FROZEN,
    FrozenFeatures,
    Recipe,
    TrainState,
    batch_with_features,
    features_of,
    frozen_features,
)
from flaxtrain.typing import Batch, HostTree

__all__ = ["NO_CACHE", "FeatureCache", "NoCache", "feature_cache"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("data", "mask", "features"),
    meta_fields=("count",),
)
@dataclass(frozen=True)
class FeaturedBatch(HostBatch):
    """A batch with the features of its examples: arrays `[rows, ...]`."""

    features: tuple[Any, ...] = ()


class NoCache:
    """No features are cached: every step runs the whole model."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds that were spent, by name, for the timings of the run."""
        return {}

    def fill(
        self,
        recipe: Recipe,
        state: TrainState,
        interrupt: DeferredInterrupt,
        engine: Engine = ONE_DEVICE,
    ) -> tuple[str, ...]:
        """Computes the features of all examples.

        Args:
            recipe: the recipe of the phase in which the run begins.
            state: the state before the first step.
            interrupt: whether to give up.
            engine: where they are computed.

        Returns:
            What a person should know.

        Raises:
            ArgumentError: nothing is frozen.
            ModelError: the frozen modules can't be cached; the message says why.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        return ()

    def recipe(self, recipe: Recipe) -> Recipe:
        """Returns the recipe of the training steps."""
        return recipe

    def epoch(self, stream: Stream, epoch: int, start: int) -> Iterator[HostBatch]:
        """Returns the batches of an epoch of `stream`, with what `data` needs."""
        return stream.epoch(epoch, start)

    def data(self, batch: HostBatch) -> Batch:
        """Returns what the training step gets of a batch."""
        return batch.data

    def drop(self) -> None:
        """Forgets the features: the phase is over in which they hold."""


NO_CACHE = NoCache()
"""Nothing is cached."""


class FeatureCache(NoCache):
    """The features of all examples of a data set of arrays, for one phase of a run.

    Args:
        stream: the training data; of arrays, but for rows that were added for devices.
        clock: returns the time in seconds.
    """

    def __init__(self, stream: Stream, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._filled: _Filled | None = None
        self._seconds = 0.0

    @property
    def seconds(self) -> Mapping[str, float]:
        """The seconds that `fill` took."""
        return {"features": self._seconds}

    def fill(
        self,
        recipe: Recipe,
        state: TrainState,
        interrupt: DeferredInterrupt,
        engine: Engine = ONE_DEVICE,
    ) -> tuple[str, ...]:
        """Computes the features; in a later phase that can't be cached, says so instead."""
        began = self._clock()
        try:
            self._filled = _filled(recipe, state, self._stream, interrupt, engine)
        except FlaxtrainError as error:
            # A run that is continued after its modules thawed goes on as it would have.
            if recipe.phase.index == 0:
                raise
            return (f"frozen features are not cached in this phase: {error.found}",)
        self._seconds = self._clock() - began
        stop = recipe.phase.stop
        return (
            self._filled.described
            + ("" if stop is None else f", to be dropped at step {stop}"),
        )

    def recipe(self, recipe: Recipe) -> Recipe:
        """Returns the recipe of steps that get their features with the batch."""
        return recipe if self._filled is None else recipe.with_features(self._filled.features)

    def epoch(self, stream: Stream, epoch: int, start: int) -> Iterator[HostBatch]:
        """Yields the batches of an epoch, with their features as long as there are any."""
        own = unaligned(self._stream)
        assert isinstance(own, ArrayStream)
        order, rows = own.source.order(epoch), own.rows
        for index, batch in enumerate(stream.epoch(epoch, start), start):
            if self._filled is None:
                yield batch
            else:
                found = self._filled.of(order[index * rows : (index + 1) * rows], rows)
                if isinstance(self._stream, AlignedStream):
                    found = self._stream.repeated(found)
                yield FeaturedBatch(batch.data, batch.mask, batch.count, found)

    def data(self, batch: HostBatch) -> Batch:
        """Returns the batch joined with its features; the batch alone once they are dropped."""
        if self._filled is None or not isinstance(batch, FeaturedBatch):
            return batch.data
        return batch_with_features(batch.data, batch.features)

    def drop(self) -> None:
        """Frees the memory; batches that are on their way are used without their features."""
        self._filled = None


def feature_cache(wanted: bool, stream: Stream) -> NoCache:
    """Returns a cache for the examples of a stream, or the one that caches nothing.

    Args:
        wanted: the argument `cache_frozen` of `fit`.
        stream: the training data.

    Raises:
        ArgumentTypeError: `wanted` is not a bool.
        ArgumentError: the examples of this data set have no numbers to know them by.

    Example:
        >>> from flaxtrain.data import as_stream, batches
        >>> stream = as_stream(batches({"x": np.ones((5, 2))}, batch_size=3))
        >>> [type(feature_cache(wanted, stream)).__name__ for wanted in (False, True)]
        ['NoCache', 'FeatureCache']
    """
    check_flag("cache_frozen", wanted, where="fit")
    if not wanted:
        return NO_CACHE
    if isinstance(stream, LocalRows):
        raise ArgumentError(
            f"features are cached by one process, and there are {stream.processes}",
            where=CACHE_FROZEN,
            fix="leave cache_frozen out, or train in one process",
        )
    if not isinstance(unaligned(stream), ArrayStream):
        raise ArgumentError(
            "features are kept by the number of the example, and only arrays have one "
            f"({stream.description})",
            where=CACHE_FROZEN,
            fix="pass arrays or ft.data.batches(arrays, batch_size), or leave cache_frozen out",
        )
    return FeatureCache(stream)


@dataclass(frozen=True)
class _Filled:
    """The features of all examples: arrays `[examples, ...]`, made on the host."""

    features: FrozenFeatures
    arrays: list[npt.NDArray[Any]] = field(repr=False)

    @property
    def described(self) -> str:
        size = readable_bytes(sum(array.nbytes for array in self.arrays))
        names = ", ".join(self.features.names)
        return f"cached the outputs of {names} for {len(self.arrays[0])} examples: {size}"

    def of(self, examples: npt.NDArray[np.int64], rows: int) -> tuple[Any, ...]:
        """Returns the features of some examples; the last one fills up to `rows`."""
        padded = np.pad(examples, (0, rows - len(examples)), mode="edge")
        return tuple(array.take(padded, axis=0) for array in self.arrays)


def _filled(
    recipe: Recipe,
    state: TrainState,
    given: Stream,
    interrupt: DeferredInterrupt,
    engine: Engine,
) -> _Filled:
    masked, stream = has_masks(recipe, given), unaligned(given)
    assert isinstance(stream, ArrayStream)
    features, on_all = frozen_features(recipe, masked), seeing_all(recipe, engine)
    program = engine.compiled_rows(lambda *args: features_of(on_all, features, *args))
    multiple = given.multiple if isinstance(given, AlignedStream) else 1
    source = aligned(ArrayStream(stream.source.in_order()), multiple)
    # Padding repeats a real row, whose features are as good as any.
    mask = np.ones(source.rows, bool) if masked else None

    def run(data: HostTree) -> Any:
        return program(state, *program.place((data, mask)))

    check_rows(lambda data: [np.asarray(a) for a in run(data)], source.example().data)
    arrays = [
        np.empty((stream.source.examples, *shape.shape[1:]), shape.dtype)
        for shape in features.shapes
    ]
    pending: Bounded[tuple[int, int, Any]] = Bounded()

    def store(start: int, count: int, found: Any) -> None:
        for array, part in zip(arrays, found, strict=True):
            array[start : start + count] = np.asarray(part)[:count]

    for index, batch in enumerate(source.epoch(0)):
        if interrupt.requested:
            raise KeyboardInterrupt
        for oldest in pending.add((index * stream.rows, batch.count, run(batch.data))):
            store(*oldest)
    for left in pending.rest():
        store(*left)
    return _Filled(features, arrays)
