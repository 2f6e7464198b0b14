"""Which devices a trainer uses, and how, as its user says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxtrain.checks import check_choice
from flaxtrain.errors import ArgumentError
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.parallel.global_arrays import local_rows, shards_by_process
from flaxtrain.parallel.layout import Layout
from flaxtrain.parallel.mesh import batch_axes, batch_shards, check_mesh, make_mesh
from flaxtrain.parallel.mesh_engine import MeshEngine
from flaxtrain.parallel.pmap_engine import PmapEngine
from flaxtrain.parallel.sharding import KINDS, Sharding
from flaxtrain.params import Facts

__all__ = ["Devices"]

BACKENDS = ("jit", "pmap")


class Devices(NamedTuple):
    """The devices of a trainer.

    Attributes:
        mesh: the mesh; None: the default device alone.
        sharding: where parameters and slots lie.
        backend: `"jit"` or `"pmap"`.
    """

    mesh: Mesh | None
    sharding: Sharding
    backend: str

    @classmethod
    def of(
        cls,
        mesh: Mapping[str, int] | Mesh | None = None,
        sharding: str | Sharding | None = None,
        backend: str = "jit",
    ) -> Self:
        """Reads the arguments of a trainer.

        Args:
            mesh: the axes of the mesh and their lengths, see `make_mesh`, or a mesh. None: all
                devices where there are several processes, or `backend` is `"pmap"`; else the
                default device alone.
            sharding: see `Sharding.of`.
            backend: `"jit"`, or `"pmap"` for data parallelism alone.

        Raises:
            ArgumentError: an argument is out of range, or they contradict one another.
            ArgumentTypeError: an argument has the wrong type.
            UnknownNameError: there is no such backend or sharding.
        """
        check_choice("backend", backend, BACKENDS, where="Trainer")
        if mesh is None and (backend == "pmap" or jax.distributed.is_initialized()):
            mesh = {"data": -1}
        if mesh is None:
            if sharding is not None:
                raise ArgumentError(
                    f"sharding={sharding!r} is given, and no mesh",
                    where="Trainer",
                    fix='pass mesh={"data": -1} or mesh={"fsdp": -1} for all devices',
                )
            return cls(None, Sharding(), backend)
        made = mesh if isinstance(mesh, Mesh) else make_mesh(mesh)
        check_mesh(made, where="Trainer(mesh=...)")
        if isinstance(sharding, str):
            check_choice("sharding", sharding, KINDS, where="Trainer")
        found = Sharding.of(sharding, made)
        if backend == "pmap":
            _check_pmap(made, found)
        return cls(made, found, backend)

    @property
    def multiple(self) -> int:
        """What the rows of a microbatch have to be a multiple of."""
        return 1 if self.mesh is None else batch_shards(self.mesh)

    @property
    def processes(self) -> int:
        """The number of processes that the devices belong to."""
        return 1 if self.mesh is None else jax.process_count()

    @property
    def _batch(self) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(batch_axes(self.mesh)))

    def local_rows(self, rows: int) -> slice | np.ndarray:
        """Returns which rows of a batch this process's devices hold.

        Args:
            rows: of the whole batch.

        Raises:
            ArgumentError: the mesh has no device of this process.
            BatchError: the rows can't be spread evenly.
        """
        return local_rows(self._batch, rows)

    def shards_by_process(self) -> dict[int, set[int]]:
        """Returns which of the `multiple` shards of a batch each process's devices hold."""
        return shards_by_process(self._batch, self.multiple)

    def engine(self, facts: Facts) -> Engine:
        """Returns what places and compiles for a model.

        Args:
            facts: the table of its parameters.

        Raises:
            ParameterError: a parameter can't be laid out as the sharding says.
        """
        if self.mesh is None:
            return ONE_DEVICE
        layout = Layout(self.mesh, self.sharding, facts)
        return PmapEngine(layout) if self.backend == "pmap" else MeshEngine(layout)

    def notes(self) -> list[str]:
        """Returns what was decided without being asked for, as sentences."""
        if self.mesh is not None or jax.local_device_count() == 1:
            return []
        count = jax.local_device_count()
        return [f'mesh= was not given: one of {count} devices; mesh={{"data": -1}} uses all']


def _check_pmap(mesh: Mesh, sharding: Sharding) -> None:
    others = [name for name, size in mesh.shape.items() if name != "data" and size > 1]
    if others or sharding.kind != "replicated" or sharding.rules or sharding.logical:
        found = f"mesh axis {others[0]!r}" if others else f"sharding={sharding!r}"
        raise ArgumentError(
            f'{found} with backend="pmap", which is data parallel only',
            where="Trainer",
            fix='leave backend out: "jit" does all of it',
        )
    if jax.process_count() > 1:
        raise ArgumentError(
            f'backend="pmap" with {jax.process_count()} processes',
            where="Trainer",
            fix='leave backend out: "jit" runs on several processes',
        )
