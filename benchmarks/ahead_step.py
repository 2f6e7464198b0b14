"""A training step of the language model, compiled ahead of time: what is known of it then.

Nothing is allocated: the batch, the state and what the compiler gets are shapes with shardings.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from language_model import LanguageModel, Size, loss
from matmul_flops import matmul_flops
from program_text import Program, read

import flaxtrain as ft
from flaxtrain.parallel import DeviceBytes, Layout, Sharding, make_mesh
from flaxtrain.parallel.mesh_engine import MeshEngine
from flaxtrain.train import OneProgram, StepOptions, train_step

NOT_A_NUMBER = -1


@dataclass(frozen=True)
class Run:
    """What is compiled.

    Attributes:
        size: the model.
        mesh: the lengths of the mesh axes by name.
        batch: rows of a batch, on all chips together.
        accumulate: microbatches in a batch.
        topology: the name of a topology of TPUs; empty for the CPU devices of this process.
    """

    size: Size
    mesh: dict[str, int]
    batch: int
    accumulate: int = 1
    topology: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip, as the compiler has them; with padding, as it lays arrays out.

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

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return self.arguments + self.output - self.alias + self.temporary


@dataclass(frozen=True)
class Found:
    """What is known of a step before it runs.

    Attributes:
        devices: the number of chips.
        split: the number of chips that parameters are split over.
        parameters: entries of all parameters.
        state: bytes of the state on one chip, from its layout.
        batch: bytes of the batch on one chip.
        memory: what the compiler says; None where it refuses.
        refusal: what the compiler says where it refuses; else empty.
        program: the collectives; None where it refuses.
        flops: of all products in the traced step, loops multiplied, on all chips together.
        xla_flops: XLA's own count for one chip, bodies of loops once.
        alive: bytes of all arrays that this process holds.
        host: the most memory that this process had, in bytes.
        seconds: by what took them.
    """

    devices: int
    split: int
    parameters: int
    state: DeviceBytes
    batch: int
    memory: Memory | None
    refusal: str
    program: Program | None
    flops: int
    xla_flops: float
    alive: int
    host: int
    seconds: dict[str, float]
    text: str


def found(run: Run) -> Found:
    """Compiles the step.

    Raises:
        ArgumentError: the mesh does not fit the devices, or the batch does not divide.
    """
    watch = _Watch()
    mesh = make_mesh(run.mesh, _devices(run.topology))
    tokens = jax.ShapeDtypeStruct((run.batch, run.size.time), jnp.int32)
    batch = {"tokens": tokens, "targets": tokens}
    recipe = ft.make_recipe(
        LanguageModel(run.size),
        _spec(run.accumulate),
        batch,
        loss=loss,
        options=StepOptions(precision="bf16"),
    )
    engine = MeshEngine(Layout(mesh, Sharding("fsdp"), recipe.facts))
    recipe = recipe.changed(replicas=OneProgram(engine.spread, engine.keep_rows))
    state, layout = jax.eval_shape(recipe.init), engine.layout
    step = engine.compiled_step(lambda *args: train_step(recipe, *args), donate=(0,), rows=(1,))
    laid_out = (
        _with(state, layout.state(state)),
        _with(batch, jax.tree.map(lambda _: layout.batch(), batch)),
    )
    watch.note("recipe and layout")
    traced = step.traced(*laid_out)
    watch.note("trace")
    lowered = traced.lower(lowering_platforms=("tpu" if run.topology else "cpu",))
    watch.note("lower")
    compiled, refusal = _compiled(lowered)
    watch.note("compile")
    text = compiled.as_text() if compiled else ""
    return Found(
        devices=mesh.size,
        split=mesh.shape.get("fsdp", mesh.size),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state=layout.describe(state).per_device,
        batch=sum(map(_on_one_chip, jax.tree.leaves(laid_out[1]))),
        memory=_memory(compiled) if compiled else None,
        refusal=refusal,
        program=read(text) if compiled else None,
        flops=matmul_flops(traced.jaxpr),
        xla_flops=_xla_flops(compiled) if compiled else NOT_A_NUMBER,
        alive=sum(array.nbytes for array in jax.live_arrays()),
        host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=watch.seconds,
        text=text,
    )


class _Watch:
    """Seconds between calls of `note`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _devices(topology: str) -> list[Any] | None:
    if not topology:
        return None
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def _spec(accumulate: int) -> ft.OptSpec:
    schedule = ft.schedules.warmup_cosine_decay_schedule(0.0, 3e-4, 2000, 100_000)
    return ft.OptSpec("adamw", schedule, weight_decay=0.1, clip_norm=1.0, accumulate=accumulate)


def _with(tree: Any, shardings: Any) -> Any:
    def one(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)


def _on_one_chip(leaf: Any) -> int:
    share = leaf.sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(share, leaf.dtype).size * leaf.dtype.itemsize


def _compiled(lowered: Any) -> tuple[Any, str]:
    """Returns the program; or None, and why a chip can't hold it."""
    try:
        return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error)


def _memory(compiled: Any) -> Memory:
    stats = compiled.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.peak_memory_in_bytes,
    )


def _xla_flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    one = analysis[0] if isinstance(analysis, list) else analysis
    return float(one.get("flops", NOT_A_NUMBER))
