"""The mesh: all devices in a grid, whose axes have names.

A batch is spread over the axes `data` and `fsdp`, as far as there are any; all other axes are
for parameters alone: along them, every device has the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from flaxtrain.answering import answering
from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.text import counted, kind_of

__all__ = ["BATCH_AXES", "AnyMesh", "abstract_mesh", "batch_axes", "batch_shards", "make_mesh"]

BATCH_AXES = ("data", "fsdp")
"""The names of the axes that a batch is spread over."""

AnyMesh: TypeAlias = Mesh | AbstractMesh
"""A mesh, with devices or without."""


@answering
def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of all devices.

    Args:
        axes: the length of each axis by name, such as `{"data": -1, "fsdp": 4, "model": 1}`.
            One of them may be -1: what the others leave. Neighbours along the last axis are
            devices with the fastest connection.
        devices: the devices; default all that there are, those of other processes included.

    Returns:
        A mesh with the axes in their order. XLA decides what is communicated along them
        (`AxisType.Auto`).

    Raises:
        ArgumentError: there are no axes or devices; a length is neither positive nor -1; two
            are -1; or the product of the lengths is not the number of devices.
        ArgumentTypeError: `axes` is no mapping from names to integers.

    Example:
        >>> dict(make_mesh({"data": -1, "model": 1}, jax.devices()[:1]).shape)
        {'data': 1, 'model': 1}
    """
    found = list(jax.devices() if devices is None else devices)
    lengths = _lengths(axes, len(found), "make_mesh(axes)")
    kinds = (AxisType.Auto,) * len(lengths)
    return jax.make_mesh(tuple(lengths.values()), tuple(lengths), kinds, devices=found)


@answering
def abstract_mesh(axes: Mapping[str, int], devices: int) -> AbstractMesh:
    """Returns a mesh without devices, to lay out a model for machines that are not there.

    Args:
        axes: as for `make_mesh`.
        devices: how many there would be, >= 1.

    Raises:
        ArgumentError: as `make_mesh` does.
        ArgumentTypeError: likewise.

    Example:
        >>> dict(abstract_mesh({"data": -1, "fsdp": 16}, 256).shape)
        {'data': 16, 'fsdp': 16}
    """
    where = "abstract_mesh(axes, devices)"
    check_integer("devices", devices, minimum=1, where=where)
    lengths = _lengths(axes, devices, where)
    kinds = (AxisType.Auto,) * len(lengths)
    return AbstractMesh(tuple(lengths.values()), tuple(lengths), axis_types=kinds)


def check_mesh(mesh: AnyMesh, *, where: str) -> None:
    """Refuses a mesh of somebody's own on which XLA does not decide what is communicated.

    Raises:
        ArgumentError: an axis is `Explicit` or `Manual`.
    """
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    for name, kind in kinds:
        if kind != AxisType.Auto:
            raise ArgumentError(
                f"the mesh axis {name!r} is of type {kind.name}",
                where=where,
                fix="make the mesh with flaxtrain.parallel.make_mesh, or with axes of "
                "jax.sharding.AxisType.Auto",
            )


def batch_axes(mesh: AnyMesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that a batch is spread over.

    Example:
        >>> batch_axes(make_mesh({"model": 1, "data": 1}, jax.devices()[:1]))
        ('data',)
    """
    return tuple(name for name in BATCH_AXES if name in mesh.shape)


def batch_shards(mesh: AnyMesh) -> int:
    """Returns the number of parts that a batch is cut into.

    Example:
        >>> batch_shards(abstract_mesh({"data": 2, "fsdp": 4, "model": 3}, 24))
        8
    """
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


def _lengths(axes: Mapping[str, int], devices: int, where: str) -> dict[str, int]:
    """Returns the length of every axis, with the one that was -1."""
    if not isinstance(axes, Mapping) or not all(isinstance(name, str) for name in axes):
        raise ArgumentTypeError(
            f"axes={axes!r} is {kind_of(axes)}, not a dict from names to lengths",
            where=where,
            fix='pass a dict such as {"data": -1}',
        )
    if not axes or not devices:
        raise ArgumentError(
            f"a mesh of {counted(len(axes), 'axis', 'axes')} and {counted(devices, 'device')}",
            where=where,
            fix='pass at least one axis, such as {"data": -1}, and at least one device',
        )
    for name, length in axes.items():
        check_integer(f"axes[{name!r}]", length, where=where)
        if length < 1 and length != -1:
            raise ArgumentError(
                f"the axis {name!r} has length {length}",
                where=where,
                fix="pass a positive integer, or -1 for what the other axes leave",
            )
    open_axes = [name for name, length in axes.items() if length == -1]
    if len(open_axes) > 1:
        raise ArgumentError(
            f"the axes {', '.join(map(repr, open_axes))} are all -1",
            where=where,
            fix="leave one of them at -1, and say how long the others are",
        )
    given = math.prod(length for length in axes.values() if length != -1)
    rest = devices // given if open_axes else 1
    if given * rest != devices:
        raise ArgumentError(
            f"axes of {given} in all do not {'divide' if open_axes else 'make up'} "
            f"{counted(devices, 'device')}",
            where=where,
            fix="choose lengths with that product, one of them -1, or pass the devices to be "
            "used, such as devices=jax.devices()[:4]",
        )
    return {name: rest if length == -1 else int(length) for name, length in axes.items()}
