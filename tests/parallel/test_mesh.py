"""Meshes by name, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from jax.sharding import AxisType

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.parallel import abstract_mesh, make_mesh
from flaxtrain.parallel.mesh import batch_axes, batch_shards

ONE = jax.devices()[:1]


class Device:
    """Stands for a device that isn't there, where a mesh is refused before it is made."""


def test_the_axes_keep_their_order_and_xla_decides_along_all_of_them() -> None:
    mesh = make_mesh({"model": 1, "data": -1, "fsdp": 1}, ONE)
    assert mesh.axis_names == ("model", "data", "fsdp")
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert mesh.size == 1


def test_a_batch_is_spread_over_data_and_fsdp_in_this_order_and_over_nothing_else() -> None:
    mesh = abstract_mesh({"model": 3, "fsdp": 4, "data": 2}, 24)
    assert batch_axes(mesh) == ("data", "fsdp")
    assert batch_shards(mesh) == 8
    assert batch_shards(abstract_mesh({"model": 8}, 8)) == 1


@pytest.mark.parametrize(
    ("axes", "devices", "found", "fix"),
    [
        ({}, 1, "0 axes and 1 device", "at least one axis"),
        ({"data": -1}, 0, "1 axis and 0 devices", "at least one device"),
        ({"data": 0}, 1, "'data' has length 0", "positive"),
        ({"data": -2}, 1, "'data' has length -2", "-1"),
        ({"data": -1, "model": -1}, 8, "'data', 'model' are all -1", "one of them"),
        ({"data": -1, "model": 3}, 8, "3 in all do not divide 8 devices", "product"),
        ({"data": -1, "model": 16}, 8, "16 in all do not divide 8 devices", "product"),
        ({"data": 2, "model": 2}, 8, "4 in all do not make up 8 devices", "devices="),
    ],
)
def test_axes_that_do_not_fit_the_devices_are_refused(
    axes: dict[str, int], devices: int, found: str, fix: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        make_mesh(axes, [Device()] * devices)
    assert found in error.value.found
    assert fix in str(error.value.fix)


def test_a_mesh_without_devices_has_the_same_axes() -> None:
    mesh = abstract_mesh({"data": -1, "model": 4}, 8)
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert mesh.axis_types == (AxisType.Auto,) * 2
    with pytest.raises(ArgumentError, match="3 in all do not make up 8 devices"):
        abstract_mesh({"data": 3}, 8)
    with pytest.raises(ArgumentError, match="devices=0"):
        abstract_mesh({"data": -1}, 0)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("axes", [[("data", 1)], None, {0: 1}, {"data": 1.0}, {"data": True}])
def test_what_is_no_mapping_from_names_to_integers_is_refused(axes: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="make_mesh"):
        make_mesh(axes, ONE)
