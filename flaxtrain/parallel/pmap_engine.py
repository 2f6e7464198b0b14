"""Data parallelism by `jax.pmap`: every device runs the training step on its own rows.

The state has its usual shapes, and every device has all of it. Evaluation and prediction run
under `jit`, as for a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax

from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.mesh_engine import MeshEngine
from flaxtrain.parallel.pmap import cut_rows, joined_rows, pmapped

__all__ = ["PmapEngine"]

T = TypeVar("T")

AXIS = "data"


class PmapEngine(MeshEngine):
    """All devices of a mesh with the one axis `data`. See `Engine` for the members."""

    @property
    def axis_name(self) -> str | None:
        """The name of the axis."""
        return AXIS

    def spread(self, microbatches: T) -> T:
        """Returns the microbatches: each device has a part of every one."""
        return microbatches

    def seen_by_one(self, batch: T) -> T:
        """Returns the rows of the first device."""
        return jax.tree.map(lambda leaf: leaf[0], batch)

    def describe(self) -> str:
        """Returns the number of replicas."""
        return f"pmap over {self.layout.mesh.size} devices"

    def as_rows(self, batch: T, *, microbatches: int) -> T:
        """Returns the rows of all devices, in their order."""
        return joined_rows(batch, microbatches=microbatches)

    def compiled_step(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...],
        rows: tuple[int, ...],
        *,
        microbatches: int = 1,
        stacked: bool = False,
    ) -> Compiled:
        """Returns the function compiled to run on every device."""
        place = partial(
            cut_rows, devices=self.layout.mesh.size, microbatches=microbatches, stacked=stacked
        )
        devices = self.layout.mesh.devices
        assert devices is not None  # an abstract mesh compiles nothing
        return pmapped(
            function,
            AXIS,
            donate=donate,
            mapped=rows,
            axis=int(stacked),
            devices=list(devices.flat),
            place=place,
        )
