"""Arrays that are spread over the devices of several processes: in, and out again."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.errors import ArgumentError, BatchError
from flaxtrain.typing import PyTree

__all__ = ["gathered", "global_batch", "is_held_here", "local_rows", "shards_by_process"]

T = TypeVar("T")


def local_rows(sharding: NamedSharding, rows: int) -> slice | np.ndarray:
    """Returns which rows of a global batch the devices of this process hold.

    Args:
        sharding: of the batch.
        rows: of the global batch, all processes together.

    Returns:
        A range; or the numbers of the rows, ascending, where the mesh mixes the devices of
        processes, as a torus of TPUs does.

    Raises:
        BatchError: the rows can't be spread evenly.
        ArgumentError: the mesh has no device of this process.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> local_rows(NamedSharding(mesh, PartitionSpec("data")), 8)
        slice(0, 8, None)
    """
    try:
        indices = sharding.addressable_devices_indices_map((rows,))
    except ValueError as error:
        raise _uneven(rows, sharding) from error
    spans = sorted(
        {(index or (slice(None),))[0].indices(rows)[:2] for index in indices.values()}
    )
    if not spans:
        raise ArgumentError(
            f"the mesh has no device of process {jax.process_index()}",
            where=f"{sharding.mesh}",
            fix="make it of devices of all processes, such as jax.devices()",
        )
    starts, stops = zip(*spans, strict=True)
    if starts[1:] == stops[:-1]:
        return slice(starts[0], stops[-1])
    return np.concatenate([np.arange(*span) for span in spans])


def shards_by_process(sharding: NamedSharding, shards: int) -> dict[int, set[int]]:
    """Returns which shards of a batch the devices of each process hold.

    Args:
        sharding: of the batch.
        shards: the number of parts that its rows are cut into.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> shards_by_process(NamedSharding(mesh, PartitionSpec("data")), 1)
        {0: {0}}
    """
    held: dict[int, set[int]] = {}
    for device, index in sharding.devices_indices_map((shards,)).items():
        held.setdefault(device.process_index, set()).update(range(shards)[index[0]])
    return held


def global_batch(local: T, sharding: NamedSharding) -> T:
    """Makes the global batch of the rows that each process has.

    No row leaves its process: an array of the result has all rows, and each device some of
    those of its process.

    Args:
        local: tree of arrays `[rows of this process, ...]`, row masks included: those of
            `local_rows`, ascending. All processes have equally many rows. An array without
            axes is the same in all of them.
        sharding: of the batch: its rows over the mesh axes that batches are spread over.

    Returns:
        The tree with arrays `[rows of all processes, ...]`.

    Raises:
        BatchError: the rows can't be spread evenly over the devices of this process.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> batch = {"x": np.ones((4, 2)), "mask": np.ones(4, bool)}
        >>> global_batch(batch, NamedSharding(mesh, PartitionSpec("data")))["x"].shape
        (4, 2)
    """
    alike = NamedSharding(sharding.mesh, PartitionSpec())

    def whole(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        if not leaf.ndim:
            return jax.make_array_from_process_local_data(alike, leaf, leaf.shape)
        try:
            return jax.make_array_from_process_local_data(sharding, leaf)
        except ValueError as error:
            raise _uneven(len(leaf), sharding) from error

    return jax.tree.map(whole, local)


def _uneven(rows: int, sharding: NamedSharding) -> BatchError:
    devices = len(sharding.addressable_devices)
    return BatchError(
        f"{rows} rows can't be spread evenly",
        where=f"{sharding.spec} over the {devices} devices of process {jax.process_index()}",
        fix="pad the batch to a multiple of the devices that share its rows",
    )


def is_held_here(tree: PyTree) -> bool:
    """Returns whether this process has all values of the arrays in a tree.

    Example:
        >>> is_held_here({"w": jax.numpy.ones(2)})
        True
    """
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in arrays)


def gathered(tree: PyTree) -> PyTree:
    """Returns host copies of arrays, wherever they are; every process calls it, and gets all.

    Arrays that this process holds whole are copied from one of its devices. Others are put
    together, one at a time, on each device: they must fit there next to the rest.

    Args:
        tree: of arrays, numbers and typed random keys.

    Returns:
        The tree with numpy arrays; keys stay keys, on this process's first device.

    Example:
        >>> gathered({"w": jax.numpy.ones(2)})
        {'w': array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(_gathered_leaf, tree)


def _gathered_leaf(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _gathered_leaf(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
