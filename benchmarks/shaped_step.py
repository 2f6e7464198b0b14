"""A training step on a mesh, compiled for shapes: what a device holds, before there are any.

Nothing is allocated: the batch, the state and what the compiler gets are shapes with shardings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Traced

from flaxtrain.loop.step_programs import seeing_all
from flaxtrain.parallel import Layout, Sharding
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.layout.table import on_one_device
from flaxtrain.parallel.mesh_engine import MeshEngine
from flaxtrain.train import Recipe, train_step
from flaxtrain.tree import nbytes


class ShapedStep(NamedTuple):
    """A training step, and the shapes that it is compiled for.

    Attributes:
        layout: where each array of a state lies.
        state: shapes of the state, with shardings.
        batch: shapes of a batch, with shardings.
        step: the step, as `Trainer(mesh=...)` makes it, without its window of metrics.
    """

    layout: Layout
    state: Any
    batch: Any
    step: Compiled

    def traced(self) -> Traced:
        """Returns the step traced."""
        return self.step.traced(self.state, self.batch)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batch on one device."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.batch)
        return nbytes(on_one_device(self.batch, shardings))


def shaped_step(recipe: Recipe, batch: Any, mesh: Mesh, sharding: Sharding) -> ShapedStep:
    """Returns the training step of a recipe on a mesh, for the shapes of a batch."""
    layout = Layout(mesh, sharding, recipe.facts)
    engine = MeshEngine(layout)
    recipe = seeing_all(recipe, engine)
    state = jax.eval_shape(recipe.init)
    return ShapedStep(
        layout,
        _placed(state, layout.state(state)),
        _placed(batch, jax.tree.map(lambda _: layout.batch(), batch)),
        engine.compiled_step(lambda *args: train_step(recipe, *args), donate=(0,), rows=(1,)),
    )


def _placed(tree: Any, shardings: Any) -> Any:
    def one(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler has them; with padding, as it lays arrays out.

    Attributes:
        arguments: state and batch.
        output: the state after the step and metrics.
        alias: output in buffers of arguments.
        temporary: all buffers that a step uses beside these.
        peak: the most that is in use at a time; a compiler for CPUs leaves temporaries out.
    """

    arguments: int
    output: int
    alias: int
    temporary: int
    peak: int

    @classmethod
    def of(cls, compiled: Any) -> Memory:
        """Returns what the compiler says of a program."""
        stats = compiled.memory_analysis()
        return cls(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.peak_memory_in_bytes,
        )

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return self.arguments + self.output - self.alias + self.temporary
