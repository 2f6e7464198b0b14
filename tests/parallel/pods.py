"""Meshes over devices of several processes, without any such device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from flaxtrain.parallel.devices import Devices

__all__ = ["pod", "pod_mesh"]


@dataclass(frozen=True)
class Client:
    index: int

    def process_index(self) -> int:
        return self.index


@dataclass(frozen=True)
class Device:
    """What a sharding asks of a device; `client` is that of the process that asks: number 0."""

    id: int
    process_index: int
    client: Client = Client(0)
    platform: str = "cpu"
    device_kind: str = "cpu"


def pod_mesh(axes: Mapping[str, int], owners: Sequence[int]) -> Mesh:
    """Returns a mesh of made-up devices, seen from process 0.

    Args:
        axes: the lengths of its axes by name.
        owners: the process of each device, in the order of the mesh.
    """
    found: Any = np.empty(len(owners), object)
    found[:] = [Device(number, process) for number, process in enumerate(owners)]
    kinds = (AxisType.Auto,) * len(axes)
    return Mesh(found.reshape(tuple(axes.values())), tuple(axes), axis_types=kinds)


def pod(axes: Mapping[str, int], owners: Sequence[int]) -> Devices:
    """Returns the devices of a trainer on such a mesh."""
    return Devices.of(pod_mesh(axes, owners))
