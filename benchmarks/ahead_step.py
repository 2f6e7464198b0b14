"""A training step of the language model, compiled ahead of time: what is known of it then.

Nothing is allocated: the batch, the state and what the compiler gets are shapes with shardings.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import jax
from language_model import LanguageModel, Size, loss, token_shapes
from matmul_flops import matmul_flops
from program_text import Program, read
from shaped_step import Memory, shaped_step

import flaxtrain as ft
from flaxtrain.parallel import DeviceBytes, Sharding, make_mesh
from flaxtrain.train import StepOptions
from flaxtrain.tree import nbytes

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
    batch = token_shapes(run.batch, run.size.time)
    model, options = LanguageModel(run.size), StepOptions(precision="bf16")
    recipe = ft.make_recipe(model, _spec(run.accumulate), batch, loss=loss, options=options)
    made = shaped_step(recipe, batch, mesh, Sharding("fsdp"))
    watch.note("recipe and layout")
    traced = made.traced()
    watch.note("trace")
    lowered = traced.lower(lowering_platforms=("tpu" if run.topology else "cpu",))
    watch.note("lower")
    compiled, refusal = _compiled(lowered)
    watch.note("compile")
    text = compiled.as_text() if compiled else ""
    return Found(
        devices=mesh.size,
        split=mesh.shape.get("fsdp", mesh.size),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(made.state.params)),
        state=made.layout.describe(made.state).per_device,
        batch=made.batch_bytes,
        memory=Memory.of(compiled) if compiled else None,
        refusal=refusal,
        program=read(text) if compiled else None,
        flops=matmul_flops(traced.jaxpr),
        xla_flops=_xla_flops(compiled) if compiled else NOT_A_NUMBER,
        alive=nbytes(jax.live_arrays()),
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


def _compiled(lowered: Any) -> tuple[Any, str]:
    """Returns the program; or None, and why a chip can't hold it."""
    try:
        return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error)


def _xla_flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    one = analysis[0] if isinstance(analysis, list) else analysis
    return float(one.get("flops", NOT_A_NUMBER))
