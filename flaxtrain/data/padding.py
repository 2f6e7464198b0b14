"""Padding: all batches of a run get the same number of rows, so that one program serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from flaxtrain.checks import check_integer
from flaxtrain.data.host import Place, as_arrays, count_rows
from flaxtrain.errors import BatchError
from flaxtrain.typing import Batch, HostTree

__all__ = ["HostBatch", "pad"]

WEIGHT_KEYS = ("mask", "weight")
"""Entries of a dict batch that weigh its examples, when they have one number per example."""


@partial(jax.tree_util.register_dataclass, data_fields=("data", "mask"), meta_fields=("count",))
@dataclass(frozen=True)
class HostBatch:
    """A batch with a fixed number of rows.

    A pytree, so that `jax.device_put` places it whole; `count` stays a Python number. Give
    `data` and `mask` to a compiled function: the object would compile it for each `count`.

    Attributes:
        data: the batch; every leaf has `rows` rows.
        mask: bool `[rows]`, true for real rows; padding is at the end.
        count: number of real rows.

    Example:
        >>> placed = jax.device_put(pad((np.ones((2, 3)),), rows=4))
        >>> placed.data[0].shape, type(placed.mask).__name__, placed.count
        ((4, 3), 'ArrayImpl', 2)
    """

    data: HostTree
    mask: Any
    count: int


@lru_cache(maxsize=64)
def _mask(count: int, rows: int) -> npt.NDArray[np.bool_]:
    mask = np.arange(rows) < count
    mask.flags.writeable = False  # it is shared by all batches of this size
    return mask


def pad(batch: Batch, rows: int) -> HostBatch:
    """Pads a batch at the end to `rows` rows.

    The padding repeats the last real row: ids stay valid, attention masks keep a place to look
    at, and no NaN comes in that a real row doesn't have. A dict's own `mask` and `weight` of
    shape `[batch]` are padded with zeros.

    Args:
        batch: a dict or tuple of arrays `[n, ...]` with `1 <= n <= rows`; its arrays are not
            changed, and not copied when `n == rows`.
        rows: number of rows afterwards.

    Returns:
        The padded batch and the mask of its real rows.

    Raises:
        BatchError: the batch has no rows or more than `rows`, or is not a batch.

    Example:
        >>> batch = {"x": np.array([[1.0], [2.0]]), "weight": np.array([0.5, 0.5])}
        >>> padded = pad(batch, rows=4)
        >>> padded.data["x"][:, 0].tolist(), padded.data["weight"].tolist()
        ([1.0, 2.0, 2.0, 2.0], [0.5, 0.5, 0.0, 0.0])
        >>> padded.mask.tolist(), padded.count
        ([True, True, False, False], 2)
    """
    check_integer("rows", rows, minimum=1, where="pad")
    place = Place("pad(batch, rows)")
    return pad_arrays(as_arrays(batch, place), rows, place)


def full(arrays: HostTree, rows: int) -> HostBatch:
    """Returns a batch that is known to have `rows` rows, all real."""
    return HostBatch(arrays, _mask(rows, rows), rows)


def pad_arrays(arrays: HostTree, rows: int, place: Place) -> HostBatch:
    """`pad` for a tree that is known to hold numpy arrays, without the checks of its leaves."""
    count = count_rows(arrays, place)
    if count == rows:
        return full(arrays, rows)
    if count == 0 or count > rows:
        found = (
            f"the batch has {count} rows"
            if count == 0
            else f"{count} rows do not fit into {rows}"
        )
        raise BatchError(found, where=place.where, fix=f"give it 1 to {rows} rows")
    padded = jax.tree_util.tree_map(lambda leaf: _repeat_last(leaf, rows), arrays)
    if isinstance(arrays, dict):
        padded |= {
            key: _zeros(arrays[key], rows) for key in WEIGHT_KEYS if is_weight(arrays, key)
        }
    return HostBatch(padded, _mask(count, rows), count)


def is_weight(batch: Any, key: str) -> bool:
    """Whether `key` is `mask` or `weight`, and the batch has one number per example there.

    Example:
        >>> [is_weight({"mask": np.ones(shape)}, "mask") for shape in (4, (4, 7))]
        [True, False]
    """
    found = key in WEIGHT_KEYS and isinstance(batch, Mapping)
    return found and getattr(batch.get(key), "ndim", None) == 1


def _repeat_last(leaf: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([leaf, np.repeat(leaf[-1:], rows - len(leaf), axis=0)])


def _zeros(leaf: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([leaf, np.zeros(rows - len(leaf), leaf.dtype)])
