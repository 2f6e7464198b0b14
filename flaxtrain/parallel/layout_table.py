"""What one device has to hold: a table of the parameters, and sums."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from flaxtrain.parallel.mesh import AnyMesh
from flaxtrain.parallel.parts import Parts, Shape, shards, used
from flaxtrain.tree import Path, path_name

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
        kept: why it, or its slots, stay whole though the kind splits; else empty.
    """

    path: Path
    shape: Shape
    spec: PartitionSpec
    slot_spec: PartitionSpec
    param_bytes: int
    slot_bytes: int
    kept: str

    @property
    def name(self) -> str:
        """The path as text."""
        return path_name(self.path)


class DeviceBytes(NamedTuple):
    """Bytes by kind. Each array is in one of them.

    Attributes:
        params: parameters.
        slots: slots.
        kept: parameters and slots that stay whole though the kind splits.
        other: collections, counters, keys.
    """

    params: int
    slots: int
    kept: int
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


class Place(NamedTuple):
    """One array of a state: its parameter, what it is, its size, and where it lies."""

    path: Path | None
    kind: Literal["params", "slots", "other"]
    shape: Shape
    nbytes: int
    parts: Parts


def bytes_of(leaf: Any) -> int:
    """Returns the memory of an array, a shape with a dtype, or a number; keys included."""
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return math.prod(array.shape) * array.dtype.itemsize


def on_device(mesh: AnyMesh, place: Place) -> int:
    """Returns the bytes of an array that one device holds."""
    return place.nbytes // shards(mesh, used(place.parts))


def rows_of(
    mesh: AnyMesh,
    places: Sequence[Place],
    params: Mapping[Path, PartitionSpec],
    slots: Mapping[Path, PartitionSpec],
    kept: Mapping[Path, str],
) -> tuple[LayoutRow, ...]:
    """Returns the table of the parameters that are among the arrays, in their order there."""
    shapes = {place.path: place.shape for place in places if place.kind == "params"}
    sums = {(place.path, place.kind): 0 for place in places}
    for place in places:
        sums[place.path, place.kind] += on_device(mesh, place)
    return tuple(
        LayoutRow(
            path,
            shape,
            params[path],
            slots[path],
            sums[path, "params"],
            sums.get((path, "slots"), 0),
            kept.get(path, ""),
        )
        for path, shape in shapes.items()
        if path is not None
    )


def sums_of(
    mesh: AnyMesh, places: Sequence[Place], splits: Collection[str], names: Collection[str]
) -> tuple[DeviceBytes, DeviceBytes]:
    """Returns the bytes on one device, and those without any splitting.

    Args:
        mesh: the mesh.
        places: the arrays.
        splits: the kinds of arrays that the sharding splits.
        names: the mesh axes that it splits them over.
    """

    def kind(place: Place) -> str:
        stays = names and place.kind in splits and not set(names) & set(used(place.parts))
        return "kept" if stays else place.kind

    device, everything = (
        dict.fromkeys(DeviceBytes._fields, 0),
        dict.fromkeys(DeviceBytes._fields, 0),
    )
    for place in places:
        device[kind(place)] += on_device(mesh, place)
        everything[kind(place)] += place.nbytes
    return DeviceBytes(**device), DeviceBytes(**everything)
