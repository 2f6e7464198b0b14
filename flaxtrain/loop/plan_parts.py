"""What a plan says about groups, phases and layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxtrain.durations import Horizon
from flaxtrain.params import Facts, layers
from flaxtrain.spec import AssignedGroup, AssignedParam, Assignment
from flaxtrain.spec.applied import rates_of
from flaxtrain.train import Recipe
from flaxtrain.tree import Path, key_of, nbytes, path_name, split

__all__ = ["PlannedGroup", "PlannedLayer", "PlannedPhase"]

AtUpdates = dict[int, float]
"""A number that may be scheduled: its values at the first, middle and last update."""

_BEHAVIOUR = {
    ("eval", "hold"): "as in evaluation, statistics held",
    ("eval", "update"): "as in evaluation, statistics updated",
    ("train", "hold"): "as in training, statistics held",
    ("train", "update"): "as in training, statistics updated",
}


@dataclass(frozen=True)
class PlannedGroup:
    """A group of parameters, and the numbers of its updates.

    Numbers are given at the first, middle and last update, by update number.

    Attributes:
        name: its name.
        selects: what selects its parameters, as text.
        optimizer: the name of the optimizer, or what an optimizer object is.
        learning_rate: the learning rate, `lr_mult` included; empty where only an optimizer
            object knows it.
        lr_mult: factor of the learning rate.
        weight_decay: the decay; empty if there is none, or an object knows.
        clip_norm: the largest norm of the group's gradient (of the whole gradient, for the
            default group); empty: its norm is not clipped.
        clips: the numbers of all kinds of clipping in their order, by name, such as
            `"clip_value"`; `clip_norm` is among them.
        parameters: number of its parameters (arrays).
        values: number of values in them.
    """

    name: str
    selects: str
    optimizer: str
    learning_rate: AtUpdates
    lr_mult: float
    weight_decay: AtUpdates
    clip_norm: AtUpdates
    clips: Mapping[str, AtUpdates]
    parameters: int
    values: int


@dataclass(frozen=True)
class PlannedPhase:
    """A stretch of the run with a fixed set of trained parameters.

    Attributes:
        start: the first step in it.
        stop: the first step after it; None for the last phase.
        parameters: number of trained parameters.
        values: number of values in them.
        slots: bytes of the optimizer's state.
        thaws: names of the parameters whose training begins here (not in the first phase).
        freezes: names of the parameters whose training ends here.
        frozen_modules: how frozen modules behave: paths by behaviour, in words.
    """

    start: int
    stop: int | None
    parameters: int
    values: int
    slots: int
    thaws: tuple[str, ...]
    freezes: tuple[str, ...]
    frozen_modules: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PlannedLayer:
    """A layer of the model.

    Attributes:
        modules: names of its modules, in order of use.
        lr_mult: factor of the learning rate, from layer-wise decay; a range if it differs.
        trainable: when its parameters are trained.
    """

    modules: tuple[str, ...]
    lr_mult: str
    trainable: str


def planned_groups(assignment: Assignment, horizon: Horizon) -> tuple[PlannedGroup, ...]:
    """Returns the groups, with their numbers at the first, middle and last update."""
    last = max(0, (horizon.updates or 1) - 1)
    steps = sorted({0, last // 2, last})

    def course(number: Any, factor: float = 1.0) -> AtUpdates:
        if number is None:
            return {}
        values = (number(step) if callable(number) else number for step in steps)
        return {s: factor * float(np.asarray(value)) for s, value in zip(steps, values)}

    return tuple(
        PlannedGroup(
            name=group.name,
            selects=group.selected_by,
            optimizer=_optimizer(group),
            learning_rate=course(rate_of(group), group.lr_mult),
            lr_mult=float(group.lr_mult),
            weight_decay=course(group.hyperparameters.numbers.get("weight_decay")),
            clip_norm=course(group.hyperparameters.numbers.get("clip_norm")),
            clips={clip.number: course(clip.bound) for clip in group.clips},
            parameters=len(group.paths),
            values=sum(assignment.params[path].fact.size for path in group.paths),
        )
        for group in assignment.groups
    )


def rate_of(group: AssignedGroup) -> Any:
    """Returns a group's learning rate, without its factor; None where it is not known."""
    if group.spec.name is not None:
        return group.spec.learning_rate
    found = rates_of(group.spec.optimizer)
    return next(iter(found.values())) if len(found) == 1 else None


def _optimizer(group: AssignedGroup) -> str:
    if group.spec.name is not None:
        return group.spec.name
    kind = getattr(group.spec.optimizer, "name", None) or type(group.spec.optimizer).__name__
    return f"{kind} (an object)"


def planned_phases(recipe: Recipe, state: Any) -> tuple[PlannedPhase, ...]:
    """Returns the phases.

    Args:
        recipe: the recipe of any phase.
        state: shapes and dtypes of a state.
    """
    found: list[PlannedPhase] = []
    slots = _slots(recipe, state)
    for phase in recipe.assignment.phases:
        own = recipe.at(phase.start)
        changes = recipe.assignment.changes(phase)
        behaviour: dict[str, tuple[str, ...]] = {}
        for module in own.frozen.modules:
            words = _BEHAVIOUR[module.mode, module.stats]
            behaviour[words] = (*behaviour.get(words, ()), path_name(module.path) or "(model)")
        found.append(
            PlannedPhase(
                start=phase.start,
                stop=phase.stop,
                parameters=len(phase.trained),
                values=sum(recipe.facts[path].size for path in phase.trained),
                slots=slots[phase.index],
                thaws=changes.thaws,
                freezes=changes.freezes,
                frozen_modules=behaviour,
            )
        )
    return tuple(found)


def _slots(recipe: Recipe, state: Any) -> list[int]:
    """Returns the bytes of the optimizer's state in each phase.

    Slots belong to parameters, so that one look at all of them is enough: objects that join
    parameters can't go from phase to phase, and are refused before.
    """
    phases = recipe.assignment.phases
    if len(phases) == 1:
        return [nbytes(state.opt_state)]
    chosen = frozenset[Path]().union(*(phase.with_slots for phase in phases))
    exact = jax.eval_shape(recipe.rounding.exact, split(state.params, chosen)[0], {})
    everything = jax.eval_shape(recipe.tx.init, exact)
    of: Counter[Path] = Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(everything):
        of[_parameter_in(tuple(map(key_of, keys)), chosen)] += nbytes(leaf)
    return [of[()] + sum(of[path] for path in phase.with_slots) for phase in phases]


def _parameter_in(path: Path, known: Collection[Path]) -> Path:
    """Returns the path of the parameter that a slot belongs to; `()` for counts and numbers."""
    ends = range(len(path), 0, -1)
    parts = (path[start:end] for start in range(len(path)) for end in ends if end > start)
    return next((part for part in parts if part in known), ())


def planned_layers(assignment: Assignment, facts: Facts) -> tuple[PlannedLayer, ...]:
    """Returns the layers, if anything in the spec goes by them."""
    spec = assignment.spec
    if spec.layer_decay is None and all(rule.every is None for rule in spec.freeze):
        return ()
    found = layers(facts)
    scales: list[list[float]] = [[] for _ in range(found.count)]
    times: list[dict[str, None]] = [{} for _ in range(found.count)]
    for path, layer in found.of.items():
        for number, scale in _slices(layer, assignment.params[path]):
            scales[number].append(scale)
            times[number][when(assignment, path)] = None
    return tuple(
        PlannedLayer(modules, range_text(np.array(factors or [1.0])), ", ".join(time))
        for modules, factors, time in zip(found.modules, scales, times, strict=True)
    )


def _slices(layer: Any, param: AssignedParam) -> list[tuple[int, float]]:
    """Returns the layer and the factor of each slice of a parameter that is a stack."""
    numbers, scale = np.asarray(layer), np.asarray(param.scale)
    if scale.ndim and numbers.ndim:
        # From the places of the axes in the parameter to the order of the scans.
        axes = param.fact.scan_axes
        along = scale.reshape([param.fact.shape[axis] for axis in sorted(axes)])
        scale = along.transpose(np.argsort(np.argsort(axes)))
    pairs = zip(numbers.ravel(), np.broadcast_to(scale, numbers.shape).ravel())
    return [(int(number), float(factor)) for number, factor in pairs]


def when(assignment: Assignment, path: Path) -> str:
    """Returns when a parameter is trained: `yes`, `no`, `from step 60`, `until step 60`."""
    spans: list[tuple[int, int | None]] = []
    for phase in assignment.phases:
        if path not in phase.trained:
            continue
        if spans and spans[-1][1] == phase.start:
            spans[-1] = (spans[-1][0], phase.stop)
        else:
            spans.append((phase.start, phase.stop))
    return ", ".join(map(_span, spans)) or "no"


def _span(span: tuple[int, int | None]) -> str:
    start, stop = span
    if stop is None:
        return f"from step {start}" if start else "yes"
    return f"steps {start}:{stop}" if start else f"until step {stop}"


def range_text(scale: Any) -> str:
    """Returns a factor as text, or the smallest and largest of several: `0.42..1`."""
    low, high = f"{np.min(scale):.3g}", f"{np.max(scale):.3g}"
    return low if low == high else f"{low}..{high}"


def memory_by_kind(recipe: Recipe, state: Any) -> dict[str, int]:
    """Returns the bytes of a state by kind, see `Plan.memory`.

    Args:
        recipe: that of the state's phase.
        state: arrays of a state, or their shapes and dtypes.
    """
    kinds = {
        "parameters": state.params,
        "slots": state.opt_state,
        "collections": state.collections,
        **({"accumulated": state.accumulated} if recipe.spec.accumulation.count > 1 else {}),
        **({"average": state.ema} if recipe.spec.ema is not None else {}),
        "total": state,
    }
    return {kind: nbytes(tree) for kind, tree in kinds.items()}
