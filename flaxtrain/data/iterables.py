"""Batches from any iterable: torch loaders, tf.data, grain, lists, generators, functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np

from flaxtrain.checks import check_integer
from flaxtrain.data.host import Place, count_rows, is_array, to_host
from flaxtrain.data.padding import HostBatch, pad_arrays
from flaxtrain.data.prefetch import source_error
from flaxtrain.data.signature import Signature
from flaxtrain.errors import ArgumentTypeError, BatchError, DataError, EmptyDatasetError
from flaxtrain.typing import HostTree

__all__ = []  # reached through as_stream

_ONCE_FIX = (
    "pass something that can be iterated again: a function that returns a new iterator "
    "(lambda: make_batches()), a list of batches, or ft.data.batches(arrays, ...)"
)
_SAME_FIX = "make every batch alike; only the number of rows may be smaller than in the first"


class IterableStream:
    """A stream over an iterable of batches, or over a function that returns an iterator.

    The first batch is read at construction: it sets the number of rows, the structure, shapes
    and dtypes that every later batch has to have, and is still the first one that `epoch`
    yields. Smaller batches are padded. Skipping reads and drops, because an iterable can't be
    entered in the middle; a resumed run repeats the order only if the iterable does.

    Attributes:
        rows: rows of every padded batch, those of the first one.
        batches_per_epoch: `len()` of the source, None if it has none.
        examples_per_epoch: None, except for a list of batches.
        may_be_padded: False only for a list of equal batches and a loader with `drop_last`.
        seekable: False.
        repeats: whether the source is more than an iterator.
        description: one line for logs.

    Raises:
        EmptyDatasetError: the source yields no batch.
        DataError: the first batch can't be used, or the source raised.
        ArgumentTypeError: the source can't be iterated.

    Example:
        >>> stream = IterableStream([{"x": np.ones((3, 2))}, {"x": np.ones((1, 2))}])
        >>> [(batch.data["x"].shape, batch.count) for batch in stream.epoch(0)]
        [((3, 2), 3), ((3, 2), 1)]
    """

    seekable = False

    def __init__(self, source: Any) -> None:
        self._source, self._kind = source, type(source).__name__
        self._copies = not isinstance(source, list)  # a list does not reuse its arrays
        self.repeats = not hasattr(source, "__next__")
        self.batches_per_epoch = _length(source)
        iterator = _iterator(source)
        first = next(_read(iterator, 0, 0, self._copies), None)
        if first is None:
            raise EmptyDatasetError(
                "the data set yields no batch",
                where=self._kind,
                fix="check that it has data; a generator that was used before is empty",
            )
        self._pending: tuple[HostTree, Iterator[Any]] | None = (first, iterator)
        self._signature = Signature.of(first)
        self.rows = count_rows(first, _place(0, 0))
        self.examples_per_epoch, equal = _examples(source)
        self.may_be_padded = not (equal or getattr(source, "drop_last", False) is True)
        self._example = pad_arrays(first, self.rows, _place(0, 0))

    @property
    def description(self) -> str:
        """One line about the source, its length and its batches."""
        count = "unknown" if self.batches_per_epoch is None else self.batches_per_epoch
        return f"{self._kind}: batches per epoch {count}, batches of {self.rows}"

    def example(self) -> HostBatch:
        """Returns the first batch; the next epoch still begins with it."""
        return self._example

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        """Returns the batches of one pass over the source, padded, from number `start` on.

        Args:
            epoch: used in messages only; the source decides its order.
            start: number of batches to read and drop first.

        Raises:
            DataError: the source can't be iterated a second time, ends while batches are
                dropped, raises, or does not keep the length it promised.
            BatchError: a batch differs from the first.
        """
        check_integer("epoch", epoch, minimum=0, where="Stream.epoch")
        check_integer("start", start, minimum=0, where="Stream.epoch")
        if not self.repeats and self._pending is None:
            raise DataError(
                f"the {self._kind} can be iterated once only, and was",
                where=f"epoch {epoch}",
                fix=f"train for one epoch, or {_ONCE_FIX}",
            )
        return self._checked(int(epoch), int(start))

    def _checked(self, epoch: int, start: int) -> Iterator[HostBatch]:
        count = 0
        for count, batch in enumerate(self._pass(epoch), start=1):
            place = _place(epoch, count - 1)
            difference = self._signature.difference(Signature.of(batch))
            if difference is not None:
                raise place.problem(difference, _SAME_FIX)
            padded = pad_arrays(batch, self.rows, place)
            if padded.count < self.rows and not self.may_be_padded:
                raise place.problem(
                    f"the batch has {padded.count} rows, the first had {self.rows}, in a data "
                    "set that promised full batches",
                    "drop the remainder, or leave out drop_last",
                )
            if count > start:
                yield padded
        self._check_count(epoch, start, count)

    def _check_count(self, epoch: int, start: int, count: int) -> None:
        where = f"epoch {epoch} of {self._kind}"
        if count == 0:
            raise EmptyDatasetError("the data set yields no batch", where=where, fix=_ONCE_FIX)
        if count < start:
            raise DataError(
                f"the data set ended after {count} batches, but {start} are to be skipped",
                where=where,
                fix="resume with the data set of the interrupted run",
            )
        if self.batches_per_epoch not in (None, count):
            raise DataError(
                f"len() promised {self.batches_per_epoch} batches per epoch, but {count} came",
                where=where,
                fix="let len() count batches, not examples; without a len() any number is fine",
            )

    def _pass(self, epoch: int) -> Iterator[HostTree]:
        if self._pending is not None:
            (first, iterator), self._pending = self._pending, None
            yield first
            yield from _read(iterator, epoch, 1, self._copies)
        else:
            yield from _read(_iterator(self._source), epoch, 0, self._copies)


def _read(iterator: Iterator[Any], epoch: int, start: int, copy: bool) -> Iterator[HostTree]:
    """Brings every batch to the host; what the source raises gets the batch's number."""
    for index in itertools.count(start):
        place = _place(epoch, index)
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise source_error(error, place.where) from error
        host = to_host(batch, place, copy=copy)
        if count_rows(host, place) == 0:
            raise place.problem("the batch has no rows", "leave empty batches out")
        yield host


def _iterator(source: Any) -> Iterator[Any]:
    made = source
    if callable(source) and not _iterable(source):
        try:
            made = source()
        except Exception as error:
            raise source_error(error, "the call of the data set, without arguments") from error
    if not _iterable(made):
        raise ArgumentTypeError(
            f"{type(made).__name__} can't be iterated",
            where="the data set",
            fix="pass a dict or tuple of arrays, ft.data.batches(...), an iterable of batches, "
            "or a function without arguments that returns an iterator",
        )
    return iter(cast(Iterable[Any], made))


def _iterable(value: Any) -> bool:
    sequence = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return not isinstance(value, type) and (hasattr(value, "__iter__") or sequence)


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def _examples(source: Any) -> tuple[int | None, bool]:
    """Returns the number of examples, and whether all batches are equally large, of a list."""
    if not isinstance(source, list):
        return None, False
    sizes = [_rows(batch) for batch in source]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None, False
    return sum(known), len(set(known)) == 1


def _rows(batch: Any) -> int | None:
    while not is_array(batch):
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        if not isinstance(parts, (list, tuple)) or not parts:
            return None
        batch = parts[0]
    shape = np.shape(batch)
    return shape[0] if shape else None


def _place(epoch: int, index: int) -> Place:
    return Place(f"epoch {epoch}, batch {index}", BatchError)
