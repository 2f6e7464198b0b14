"""What a plan says about the devices: what each of them gets of a batch, and has to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import jax

from flaxtrain.data import Stream
from flaxtrain.data.local_rows import rows_as_given
from flaxtrain.loop.plan_parts import memory_by_kind
from flaxtrain.loop.steps_per_call import ONE_STEP, CallForm, StepsPerCall
from flaxtrain.parallel import Layout, Sharding
from flaxtrain.parallel.devices import Devices
from flaxtrain.parallel.layout.table import on_one_device
from flaxtrain.text import counted, listed, readable_bytes
from flaxtrain.train import Recipe

__all__ = ["ONE_STEP_ON_ONE_DEVICE", "PlannedDevices", "planned_devices"]


@dataclass(frozen=True)
class PlannedDevices:
    """The devices of a run. As it comes: the default device alone, one step per call.

    Attributes:
        mesh: the axes of the mesh and their lengths; empty for the default device alone.
        kind: what the devices are, as JAX names them.
        processes: to how many processes they belong.
        sharding: what is split.
        backend: `"jit"` or `"pmap"`.
        steps_per_call: how many steps a call makes at most; 0 while that has to be timed.
        unrolled: whether these are written out in the program.
        rows: rows of a batch on one device, padding included.
        padding: rows of a batch that are there so that it divides, on all devices together.
        memory: bytes that one device holds of the state in the first phase, by the kinds of
            `Plan.memory`.
        left_whole: why parameters stay whole, or their slots, though the sharding splits: to
            each reason the names of the parameters.
    """

    mesh: Mapping[str, int] = field(default_factory=dict)
    kind: str = ""
    processes: int = 1
    sharding: str = "replicated"
    backend: str = "jit"
    steps_per_call: int = 1
    unrolled: bool = False
    rows: int = 0
    padding: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    left_whole: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields words, and the lines behind them; nothing where there is nothing to say."""
        if self.mesh:
            yield "devices", self._devices_line()
            yield "on each device", "; ".join(self._share())
        yield from (
            (
                "left whole",
                f"{counted(len(names), 'parameter')} ({listed(names, shown=3)}): {why}",
            )
            for why, names in self.left_whole.items()
        )
        if self.steps_per_call != 1:
            yield "calls", self._calls_line()

    def _devices_line(self) -> str:
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
        parts = [f"mesh {axes} ({self.kind})", f"sharding {self.sharding}", self.backend]
        if self.processes > 1:
            parts.append(counted(self.processes, "process", "processes"))
        return "; ".join(parts)

    def _share(self) -> Iterator[str]:
        padding = f" (of all, {self.padding} are padding)" if self.padding else ""
        yield f"{counted(self.rows, 'row')} of a batch{padding}"
        yield ", ".join(f"{kind} {readable_bytes(n)}" for kind, n in self.memory.items())

    def _calls_line(self) -> str:
        if not self.steps_per_call:
            return "as many steps in one call as suit the time of a step"
        form = ", written out" if self.unrolled else ""
        return f"up to {self.steps_per_call} steps in one call{form}"


ONE_STEP_ON_ONE_DEVICE = PlannedDevices()
"""The default device alone, one step per call."""


def planned_devices(
    recipe: Recipe, stream: Stream, devices: Devices, steps_per_call: StepsPerCall
) -> PlannedDevices:
    """Returns what a plan says about the devices. Nothing is allocated on them.

    Args:
        recipe: the recipe of any phase.
        stream: the data, padded so that batches divide.
        devices: those of the trainer.
        steps_per_call: how many steps a call is to make.

    Raises:
        ArgumentError: so many steps can't be written out.
        ParameterError: a parameter can't be laid out as the sharding says.
    """
    chosen = _call_form(steps_per_call, recipe)
    steps, unrolled = chosen.steps, chosen.form == "unrolled"
    if devices.mesh is None:
        return PlannedDevices(steps_per_call=steps, unrolled=unrolled)
    layout = Layout(devices.mesh, devices.sharding, recipe.facts)
    recipe = recipe.at(0)
    state = jax.eval_shape(recipe.init)
    held = on_one_device(state, layout.state(state))
    left_whole: dict[str, tuple[str, ...]] = {}
    for path, why in layout.left_whole.items():
        left_whole[why] = (*left_whole.get(why, ()), recipe.facts[path].name)
    return PlannedDevices(
        mesh=dict(devices.mesh.shape),
        kind=devices.mesh.devices.flat[0].device_kind,
        processes=devices.processes,
        sharding=_sharding_text(devices.sharding),
        backend=devices.backend,
        steps_per_call=steps,
        unrolled=unrolled,
        rows=stream.rows // devices.multiple,
        padding=stream.rows - rows_as_given(stream),
        memory=memory_by_kind(recipe, held),
        left_whole=left_whole,
    )


def _call_form(steps_per_call: StepsPerCall, recipe: Recipe) -> CallForm:
    """Returns the form of a call, without deciding anything for `fit`; 0 steps: to be timed."""
    if steps_per_call.call_form is not None:
        return steps_per_call.call_form
    if isinstance(steps_per_call.asked, str):
        return CallForm(0, ONE_STEP.form)
    return CallForm.of(steps_per_call.asked, recipe)


def _sharding_text(sharding: Sharding) -> str:
    plain = sharding == Sharding(sharding.kind)
    return sharding.kind if plain else repr(sharding)
