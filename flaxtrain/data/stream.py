"""The one form in which the training loop sees any data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax

from flaxtrain.checks import check_integer
from flaxtrain.data.batches import ArrayBatches, batches
from flaxtrain.data.host import Place, canonical_tree, is_array
from flaxtrain.data.iterables import IterableStream
from flaxtrain.data.padding import HostBatch, full, pad_arrays
from flaxtrain.errors import ArgumentError, ArgumentTypeError, BatchError
from flaxtrain.text import kind_of
from flaxtrain.typing import HostTree

__all__ = ["DEFAULT_BATCH_SIZE", "Stream", "as_stream", "is_arrays"]

DEFAULT_BATCH_SIZE = 128
"""Rows per batch when arrays are given without a batch size."""


@runtime_checkable
class Stream(Protocol):
    """Host batches of a fixed number of rows, epoch by epoch.

    An object with these members can be given to `fit` in place of a data set.
    """

    @property
    def rows(self) -> int:
        """Rows of every batch, padding included."""
        ...

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per epoch, None if unknown."""
        ...

    @property
    def examples_per_epoch(self) -> int | None:
        """Real rows per epoch, None if unknown."""
        ...

    @property
    def may_be_padded(self) -> bool:
        """False only when it is certain that no batch is padded."""
        ...

    @property
    def seekable(self) -> bool:
        """Whether skipping costs no reading, and an epoch's number decides its order."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether there can be a second epoch."""
        ...

    @property
    def description(self) -> str:
        """One line for logs."""
        ...

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0, without taking it out of the stream."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the batches of one epoch from batch number `start` on."""
        ...


@dataclass(frozen=True)
class ArrayStream:
    """A stream over `ArrayBatches`; see `Stream` for the members.

    64-bit leaves are converted batch by batch to the dtype jax will use.

    Attributes:
        source: the data set.
        default_size: whether the batch size was nobody's choice.

    Example:
        >>> import numpy as np
        >>> stream = ArrayStream(batches({"x": np.ones((5, 2))}, batch_size=3))
        >>> stream.rows, stream.batches_per_epoch, stream.may_be_padded
        (3, 2, True)
        >>> [batch.mask.tolist() for batch in stream.epoch(0)]
        [[True, True, True], [True, True, False]]
    """

    source: ArrayBatches
    default_size: bool = False

    @property
    def rows(self) -> int:
        """The batch size, also when there are fewer examples."""
        return int(self.source.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Batches per epoch."""
        return len(self.source)

    @property
    def examples_per_epoch(self) -> int:
        """Examples per epoch, without a dropped remainder."""
        return min(self.source.examples, len(self.source) * self.rows)

    @property
    def may_be_padded(self) -> bool:
        """Whether the last batch is smaller."""
        return self.examples_per_epoch % self.rows != 0

    @property
    def seekable(self) -> bool:
        """Always True."""
        return True

    @property
    def repeats(self) -> bool:
        """Always True."""
        return True

    @property
    def description(self) -> str:
        """One line: examples, steps, batch size, order."""
        size = f"{self.rows} (the default; pass batch_size= to change it)"
        return (
            f"{self.examples_per_epoch} examples, {self.batches_per_epoch} batches per epoch, "
            f"batch size {size if self.default_size else self.rows}, "
            + (f"shuffled with seed {self.source.seed}" if self.source.shuffle else "in order")
        )

    def example(self) -> HostBatch:
        """Returns the first batch of epoch 0."""
        return next(self.epoch(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the batches of an epoch, padded; seeking costs one permutation at most.

        Raises:
            ArgumentError: `start` is beyond the epoch.
        """
        found = self.source.epoch(epoch, start)
        return (self._finish(batch, epoch, index) for index, batch in enumerate(found, start))

    @cached_property
    def _converts(self) -> bool:
        """Whether jax would use another dtype for some leaf."""
        leaves = jax.tree.leaves(self.source.arrays)
        return any(jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype for leaf in leaves)

    def _finish(self, batch: HostTree, epoch: int, index: int) -> HostBatch:
        if (index + 1) * self.rows <= self.source.examples and not self._converts:
            return full(batch, self.rows)  # nearly every batch; the rest costs more than it
        place = Place(f"epoch {epoch}, batch {index}", BatchError)
        return pad_arrays(canonical_tree(batch, place), self.rows, place)


def is_arrays(ds: Any) -> bool:
    """Whether a data set is arrays, which `batch_size=` cuts, rather than batches.

    Example:
        >>> is_arrays({"x": [1.0, 2.0]}), is_arrays([{"x": 1.0}])
        (True, False)
    """
    return isinstance(ds, (Mapping, tuple)) or is_array(ds)


def as_stream(
    ds: Any, batch_size: int | None = None, *, shuffle: bool = False, seed: int = 0
) -> Stream:
    """Turns any data set into a `Stream`.

    Args:
        ds: one of
            a dict or tuple of arrays `[n, ...]`, nested as you like, or one array;
            what `ft.data.batches` returns;
            anything that can be iterated again and yields batches (torch's `DataLoader`,
            tf.data, grain, a list of batches);
            a function without arguments that returns an iterator over batches;
            an iterator or generator, for one epoch;
            a `Stream`, which is returned.
            Leaves may be tensors of other libraries if numpy can read them.
        batch_size: for arrays only, default 128.
        shuffle: for arrays only, whether each epoch has an order of its own.
        seed: for arrays only, decides those orders.

    Returns:
        The stream. The first batch of an iterable has been read; the first epoch gives it.

    Raises:
        EmptyDatasetError: there is no batch.
        DataError: the arrays, or the first batch, can't be used.
        ArgumentError: `batch_size` is out of range, or the data set has batches already.
        ArgumentTypeError: `ds` is no data set.

    Example:
        >>> import numpy as np
        >>> stream = as_stream((np.ones((5, 2)), np.zeros(5)), batch_size=2)
        >>> [batch.count for batch in stream.epoch(0)]
        [2, 2, 1]
    """
    if batch_size is not None:
        check_integer("batch_size", batch_size, minimum=1, where="as_stream")
    if is_arrays(ds):
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        source = batches(ds, size, shuffle=shuffle, seed=seed)
        return ArrayStream(source, default_size=batch_size is None)
    if batch_size is not None:
        raise ArgumentError(
            f"batch_size={batch_size} was given for {kind_of(ds)}, which has batches already",
            where="the data set",
            fix="leave batch_size out, or pass a dict or tuple of arrays",
        )
    if isinstance(ds, Stream):
        return ds
    if isinstance(ds, ArrayBatches):
        return ArrayStream(ds)
    _refuse_ambiguous(ds)
    return IterableStream(ds)


def _refuse_ambiguous(ds: Any) -> None:
    """A list of arrays is either inputs and targets, or batches; text is neither."""
    if isinstance(ds, list) and ds and all(is_array(item) for item in ds):
        raise ArgumentTypeError(
            "a list of arrays is given, which may mean inputs and targets, or batches",
            where="the data set",
            fix="pass a tuple (inputs, targets), or a list of dicts or tuples, one per batch",
        )
    if isinstance(ds, (str, bytes)):
        raise ArgumentTypeError(
            f"{ds!r} is {kind_of(ds)}, not a data set",
            where="the data set",
            fix="load the file first, and pass its arrays",
        )
