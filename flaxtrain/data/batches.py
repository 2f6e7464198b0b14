"""Batches of arrays in memory, or in a memory map: seeded, seekable, never copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
import numpy.typing as npt

from flaxtrain.answering import answering
from flaxtrain.checks import check_integer
from flaxtrain.data.host import Place, as_arrays, count_rows
from flaxtrain.errors import ArgumentError, ArgumentTypeError, DataError, EmptyDatasetError
from flaxtrain.typing import Batch, HostTree

__all__ = ["ArrayBatches", "batches"]


@dataclass(frozen=True, eq=False)
class ArrayBatches:
    """A data set of arrays, cut into batches. Made by `batches`, which explains it.

    Attributes:
        arrays: the arrays, as numpy arrays that share the caller's memory.
        batch_size: rows per batch.
        shuffle: whether every epoch has an order of its own.
        seed: decides those orders.
        drop_remainder: whether a smaller last batch is left out.
    """

    arrays: HostTree
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_remainder: bool = False

    def __post_init__(self) -> None:
        where = "batches"
        check_integer("batch_size", self.batch_size, minimum=1, where=where)
        check_integer("seed", self.seed, minimum=0, where=where)
        for name in ("shuffle", "drop_remainder"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ArgumentTypeError(
                    f"{name}={getattr(self, name)!r} is not a bool",
                    where=where,
                    fix="pass True or False",
                )
        place = Place("batches(arrays, ...)", DataError)
        object.__setattr__(self, "arrays", as_arrays(self.arrays, place))
        _check_size(count_rows(self.arrays, place), self.batch_size, self.drop_remainder)

    @property
    def examples(self) -> int:
        """Number of rows in the arrays."""
        return int(jax.tree_util.tree_leaves(self.arrays)[0].shape[0])

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(self.examples, self.batch_size)
        return full + (rest > 0 and not self.drop_remainder)

    def in_order(self) -> ArrayBatches:
        """Returns the same batches without shuffling, every example once."""
        return replace(self, shuffle=False, drop_remainder=False)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0; another epoch has to be asked for, see `epoch`."""
        return self.epoch(0)

    def __repr__(self) -> str:
        return (
            f"ArrayBatches({self.examples} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, seed={self.seed}, drop_remainder={self.drop_remainder})"
        )

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the row numbers in the order of an epoch, a pure function of seed and epoch.

        Args:
            epoch: 0, 1, 2, ...

        Example:
            >>> data = batches((np.arange(4),), 2, shuffle=True, seed=0)
            >>> data.order(0).tolist(), data.order(1).tolist()
            ([1, 0, 3, 2], [2, 0, 3, 1])
        """
        check_integer("epoch", epoch, minimum=0, where="ArrayBatches.order")
        if not self.shuffle:
            return np.arange(self.examples)
        entropy = np.random.SeedSequence(int(self.seed), spawn_key=(int(epoch),))
        return np.random.Generator(np.random.PCG64(entropy)).permutation(self.examples)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Returns the batches of one epoch, from batch number `start` on.

        Args:
            epoch: 0, 1, 2, ...; without shuffling all epochs are alike.
            start: the first batch wanted, at most `len(self)`.

        Returns:
            Batches of numpy arrays in the dtypes of the arrays; the last may be smaller.
            Without shuffling they are read-only views of the arrays.

        Raises:
            ArgumentError: `start` is beyond the epoch.

        Example:
            >>> data = batches({"x": np.arange(5)}, 2)
            >>> [batch["x"].tolist() for batch in data.epoch(0, start=1)]
            [[2, 3], [4]]
        """
        check_integer("epoch", epoch, minimum=0, where="ArrayBatches.epoch")
        check_integer("start", start, minimum=0, where="ArrayBatches.epoch")
        if start > len(self):
            raise ArgumentError(
                f"start={start}, but an epoch has {len(self)} batches",
                where="ArrayBatches.epoch",
                fix=f"pass 0 <= start <= {len(self)}",
            )
        return (
            self._gather(int(epoch), int(start)) if self.shuffle else self._slices(int(start))
        )

    def _gather(self, epoch: int, start: int) -> Iterator[Batch]:
        order, size = self.order(epoch), self.batch_size
        for index in range(start, len(self)):
            rows = order[index * size : (index + 1) * size]
            yield jax.tree_util.tree_map(
                lambda leaf, rows=rows: leaf.take(rows, axis=0), self.arrays
            )

    def _slices(self, start: int) -> Iterator[Batch]:
        for index in range(start, len(self)):
            rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
            yield jax.tree_util.tree_map(lambda leaf, rows=rows: _view(leaf, rows), self.arrays)


def _view(leaf: np.ndarray, rows: slice) -> np.ndarray:
    view = leaf[rows]
    view.flags.writeable = False  # writing into a batch would change the caller's data
    return view


def _check_size(examples: int, batch_size: int, drop_remainder: bool) -> None:
    if examples == 0:
        raise EmptyDatasetError(
            "the arrays have 0 rows",
            where="batches(arrays, ...)",
            fix="pass at least one example",
        )
    if drop_remainder and examples < batch_size:
        raise EmptyDatasetError(
            f"{examples} examples are fewer than one batch of {batch_size}",
            where="batches(..., drop_remainder=True)",
            fix=f"pass drop_remainder=False, or batch_size <= {examples}",
        )


@answering
def batches(
    arrays: Batch,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_remainder: bool = False,
) -> ArrayBatches:
    """Cuts arrays into batches: a data set to iterate again, and to enter at any batch.

    The arrays are neither copied nor changed (a jax array on an accelerator is fetched once);
    don't change them yourself while they are trained on.
    With `shuffle`, every epoch is one permutation of all rows that depends on `seed` and the
    epoch's number only, so that a resumed run sees what the uninterrupted one would have seen.

    Iterating over the object gives epoch 0, each time the same: ask for `data.epoch(3)` in a
    loop of your own. `Trainer.fit` goes through the epochs by itself. Batches keep the
    arrays' dtypes here; `fit` brings 64-bit ones to the dtype jax uses.

    Args:
        arrays: a dict or tuple of numpy or jax arrays, nested as you like, with equal leading
            axes.
        batch_size: rows per batch, >= 1.
        shuffle: whether to permute the rows in every epoch.
        seed: integer >= 0.
        drop_remainder: whether to leave out a last batch that is not full.

    Returns:
        The data set; `len()` of it is the number of batches per epoch.

    Raises:
        DataError: leaves are no arrays of numbers, or disagree in their leading axes.
        EmptyDatasetError: no batch would come out.
        ArgumentError: `batch_size` or `seed` is out of range.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> data = batches({"x": np.arange(5), "y": np.arange(5) ** 2}, batch_size=2)
        >>> len(data)
        3
        >>> [batch["y"].tolist() for batch in data]
        [[0, 1], [4, 9], [16]]
    """
    return ArrayBatches(arrays, batch_size, shuffle, seed, drop_remainder)
