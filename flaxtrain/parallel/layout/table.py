"""What one device has to hold: a table of the parameters, and sums."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.parallel.layout.splits import AxisSplits, Shape, used
from flaxtrain.tree import Path, path_name
from flaxtrain.typing import PyTree

__all__ = ["DeviceBytes", "LayoutRow", "LayoutTable"]


class LayoutRow(NamedTuple):
    """One parameter.

    Attributes:
        path: its path.
        shape: its shape.
        spec: what it is split over.
        slot_spec: what slots of its shape are split over.
        param_bytes: the memory it takes on one device.
        slot_bytes: that of all its slots: the optimizer's, and averages, sums and copies of it.
        left_whole: why it, or its slots, stay whole though the kind splits; else empty.
    """

    path: Path
    shape: Shape
    spec: PartitionSpec
    slot_spec: PartitionSpec
    param_bytes: int
    slot_bytes: int
    left_whole: str

    @property
    def name(self) -> str:
        """The path as text."""
        return path_name(self.path)


class DeviceBytes(NamedTuple):
    """Bytes by kind. Each array is in one of them.

    Attributes:
        params: parameters.
        slots: slots.
        left_whole: parameters and slots that stay whole though the kind splits.
        other: collections, counters, keys.
    """

    params: int
    slots: int
    left_whole: int
    other: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


class LayoutTable(NamedTuple):
    """What one device has to hold of a state.

    Attributes:
        rows: the parameters, in the order of the params.
        per_device: bytes on one device.
        whole: bytes of the same arrays, were they not split.
    """

    rows: tuple[LayoutRow, ...]
    per_device: DeviceBytes
    whole: DeviceBytes


class PlacedLeaf(NamedTuple):
    """One array of a state: its parameter, what it is, its bytes, and where it lies."""

    path: Path | None
    kind: Literal["params", "slots", "other"]
    shape: Shape
    on_device: int
    whole: int
    splits: AxisSplits


def on_one_device(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns the shapes of what one device holds.

    Args:
        tree: arrays, or their shapes and dtypes.
        shardings: the sharding of each of them.
    """

    def part(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)

    return jax.tree.map(part, tree, shardings)


def rows_of(
    leaves: Sequence[PlacedLeaf],
    params: Mapping[Path, PartitionSpec],
    slots: Mapping[Path, PartitionSpec],
    left_whole: Mapping[Path, str],
) -> tuple[LayoutRow, ...]:
    """Returns the table of the parameters that are among the arrays, in their order there."""
    shapes = {leaf.path: leaf.shape for leaf in leaves if leaf.kind == "params"}
    sums = {(leaf.path, leaf.kind): 0 for leaf in leaves}
    for leaf in leaves:
        sums[leaf.path, leaf.kind] += leaf.on_device
    return tuple(
        LayoutRow(
            path,
            shape,
            params[path],
            slots[path],
            sums[path, "params"],
            sums.get((path, "slots"), 0),
            left_whole.get(path, ""),
        )
        for path, shape in shapes.items()
        if path is not None
    )


def sums_of(
    leaves: Sequence[PlacedLeaf],
    split_kinds: Collection[str],
    names: Collection[str],
) -> tuple[DeviceBytes, DeviceBytes]:
    """Returns the bytes on one device, and those without any splitting.

    Args:
        leaves: the arrays.
        split_kinds: the kinds of arrays that the sharding splits.
        names: the mesh axes that it splits them over.
    """

    def kind(leaf: PlacedLeaf) -> str:
        stays = names and leaf.kind in split_kinds and not set(names) & set(used(leaf.splits))
        return "left_whole" if stays else leaf.kind

    device, everything = (
        dict.fromkeys(DeviceBytes._fields, 0),
        dict.fromkeys(DeviceBytes._fields, 0),
    )
    for leaf in leaves:
        device[kind(leaf)] += leaf.on_device
        everything[kind(leaf)] += leaf.whole
    return DeviceBytes(**device), DeviceBytes(**everything)
