"""Compilation with `jax.pmap`: data parallel only, every device runs it on its own rows.

A batch of `rows` is cut into `[devices, rows / devices, ...]`. Of every microbatch of the whole
batch, each device has an equal part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from flaxtrain.errors import ArgumentError
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.place import place

__all__ = ["cut_rows", "joined_rows", "pmapped"]

T = TypeVar("T")


class _Pmapped(Compiled):
    """A function under `jax.pmap` that counts how often it was traced. See `pmapped`."""

    def __init__(
        self,
        function: Callable[..., Any],
        axis_name: str,
        donate: tuple[int, ...],
        mapped: tuple[int, ...],
        axis: int,
        devices: Sequence[Any] | None,
        place: Callable[[Any], Any],
    ) -> None:
        super().__init__(function, donate, place)
        self._axes, self._by_count = dict.fromkeys(mapped, axis), {}
        self._settings: dict[str, Any] = {
            "axis_name": axis_name,
            "devices": devices,
            "donate_argnums": donate,
            "out_axes": None,
        }

    def __call__(self, *args: Any) -> Any:
        """Runs the function; compiles it first for shapes that it has not seen."""
        known, count = self._by_count, len(args)
        if count not in known:
            axes = tuple(map(self._axes.get, range(count)))
            known[count] = jax.pmap(self._traced, in_axes=axes, **self._settings)
        return known[count](*args)


def pmapped(
    function: Callable[..., Any],
    axis_name: str,
    *,
    donate: tuple[int, ...] = (),
    mapped: tuple[int, ...],
    axis: int = 0,
    devices: Sequence[Any] | None = None,
    place: Callable[[Any], Any] = place,
) -> Compiled:
    """Returns `function` compiled to run on every device at once, on a part of the rows each.

    What it returns has to be the same on all devices: the arrays are those of a replicated
    sharding, and nobody compares them.

    Args:
        function: a pure function, which may sum over `axis_name`.
        axis_name: the name of the axis of devices.
        donate: positions of the arguments whose buffers the result may reuse.
        mapped: positions of the arguments whose arrays have an axis of the devices; each sees
            its own part. The others are the same on all devices.
        axis: which one that axis is.
        devices: of this process; default all.
        place: starts the transfer of a host batch to where the function wants it.

    Example:
        >>> mean = pmapped(lambda x: jax.lax.pmean(x.mean(), "data"), "data", mapped=(0,))
        >>> float(mean(cut_rows(np.array([1.0, 3.0]), 1))), mean.compilations
        (2.0, 1)
    """
    return _Pmapped(function, axis_name, donate, mapped, axis, devices, place)


def cut_rows(batch: T, devices: int, *, microbatches: int = 1, stacked: bool = False) -> T:
    """Returns arrays `[rows, ...]` as `[devices, rows / devices, ...]`.

    Args:
        batch: any tree of host arrays; None stays None.
        devices: number of devices.
        microbatches: number of microbatches that each device cuts its rows into. Microbatch i
            of the whole batch is then what the devices' microbatches i are together.
        stacked: whether arrays are `[batches, rows, ...]`; those of the result are
            `[batches, devices, rows / devices, ...]`.

    Raises:
        ArgumentError: the rows of a microbatch don't divide among the devices.

    Example:
        >>> cut_rows(np.arange(8), 2).tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7]]
        >>> cut_rows(np.arange(8), 2, microbatches=2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """

    def cut(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        before, (rows, *rest) = leaf.shape[:stacked], leaf.shape[stacked:]
        if rows % (devices * microbatches):
            raise ArgumentError(
                f"{rows} rows don't divide into {microbatches} microbatches for each "
                f"of {devices} devices",
                where="the batch",
                fix=f"pass a multiple of {devices * microbatches} rows",
            )
        parts = leaf.reshape(*before, microbatches, devices, -1, *rest)
        swapped = np.swapaxes(parts, stacked, stacked + 1)
        return swapped.reshape(*before, devices, -1, *rest)

    return jax.tree.map(cut, batch)


def joined_rows(batch: T, *, microbatches: int = 1) -> T:
    """Returns arrays `[devices, rows / devices, ...]` as the `[rows, ...]` that were cut.

    Args:
        batch: what `cut_rows` has returned of one batch.
        microbatches: as for `cut_rows`.

    Example:
        >>> joined_rows(cut_rows(np.arange(8), 2, microbatches=2), microbatches=2).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def joined(leaf: Any) -> Any:
        parts = np.reshape(leaf, (leaf.shape[0], microbatches, -1, *leaf.shape[2:]))
        return np.swapaxes(parts, 0, 1).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(joined, batch)
