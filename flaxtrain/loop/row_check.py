"""Whether the features of an example are its own: tried out on one batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtrain.errors import ModelError
from flaxtrain.train import CACHE_FROZEN
from flaxtrain.typing import HostTree

__all__ = ["check_rows"]

Program = Callable[[HostTree], list[npt.NDArray[Any]]]


def check_rows(run: Program, data: HostTree) -> None:
    """Refuses features of a row that depend on the other rows, or on the row's place.

    Rows are exchanged for others in several runs, so chosen that of any two rows, in some run,
    the one is exchanged and the other is not. A row that stays has to keep every bit of its
    features. Then all rows change places; another place may mean other roundings.

    Args:
        run: from a batch to its features, `[rows, ...]` each.
        data: a batch.

    Raises:
        ModelError: the features of a row depend on more than the row.
    """
    rows = jax.tree.leaves(data)[0].shape[0]
    others = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), data)
    features = run(data)
    for exchanged in exchanges(rows):
        mixed = jax.tree.map(
            lambda leaf, other, e=exchanged: np.where(column_of(e, leaf), other, leaf),
            data,
            others,
        )
        kept = ~exchanged
        for one, other in zip(features, run(mixed), strict=True):
            if one[kept].tobytes() != other[kept].tobytes():
                raise _row_error("the other rows of its batch")
    for one, other in zip(features, run(others), strict=True):
        if not nearly_equal(np.roll(one, 1, axis=0), other):
            raise _row_error("its place in the batch")


def exchanges(rows: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yields which rows to exchange in each run; `[rows]` each.

    Row number i is exchanged in the i-th choice of half the runs. No choice contains another
    one, so each row stays in a run in which a given other one is exchanged.

    Example:
        >>> [exchanged.astype(int).tolist() for exchanged in exchanges(3)]
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    runs = next(n for n in itertools.count(1) if math.comb(n, n // 2) >= rows)
    choices = list(itertools.islice(itertools.combinations(range(runs), runs // 2), rows))
    for number in range(runs):
        yield np.array([number in choice for choice in choices])


def column_of(chosen: npt.NDArray[np.bool_], leaf: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Returns a choice of rows in a shape that broadcasts against a leaf."""
    return chosen.reshape(-1, *[1] * (leaf.ndim - 1))


def nearly_equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are equal but for roundings: half the digits of their dtype."""
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return bool(np.array_equal(one, other))
    wide = np.result_type(one.dtype if one.dtype.kind == "c" else np.float64, np.float64)
    a, b = one.astype(wide), other.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    gap, size = np.max(np.abs(a - b), initial=0.0), np.max(np.abs(a), initial=0.0)
    return bool(gap <= float(jnp.finfo(one.dtype).eps) ** 0.5 * size)


def _row_error(on: str) -> ModelError:
    return ModelError(
        f"what the frozen modules return for a row depends on {on}",
        where=CACHE_FROZEN,
        fix="freeze with stats='hold' and mode='eval' (BatchNorm then uses its running "
        "statistics), do without operations across the batch, or leave cache_frozen out",
    )
