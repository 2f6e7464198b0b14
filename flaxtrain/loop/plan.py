"""What a run will do, before it does it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.loop.length import begun_updates
from flaxtrain.loop.plan_devices import ONE_STEP_ON_ONE_DEVICE, PlannedDevices
from flaxtrain.loop.plan_parts import (
    AtUpdates,
    PlannedGroup,
    PlannedLayer,
    PlannedPhase,
    memory_by_kind,
    planned_groups,
    planned_layers,
    planned_phases,
    range_text,
    when,
)
from flaxtrain.loop.plan_precision import PlannedDtypes, planned_dtypes
from flaxtrain.loop.plan_tables import groups_table, layers_table, phases_table
from flaxtrain.loop.plan_warnings import warnings_of
from flaxtrain.params import Table, overview, preset_differences
from flaxtrain.spec import Assignment, OptSpec
from flaxtrain.spec.averaging import describe_average
from flaxtrain.text import TextTable, listed, readable_bytes
from flaxtrain.train import CollectionLoss, Recipe

__all__ = ["Plan", "parameter_table", "spec_data", "spec_text"]

_WIDTH = 15
"""The width of the words in front of a line."""


@dataclass(frozen=True)
class Plan:
    """Everything that will happen in a run; print it.

    Attributes:
        table: the table of parameters: class, role, shape, group, decay, factor of the learning
            rate, when it is trained.
        groups: the groups of parameters and the numbers of their updates.
        overlaps: sentences about parameters that several groups select.
        phases: the stretches of the run, each with a fixed set of trained parameters.
        layers: the layers of the model, where the spec goes by them.
        presets: for each decay preset, the names of the parameters that decay under it and not
            here, and of those that decay here and not under it; empty where nothing can decay.
        horizon: length of the run, of an epoch, of a batch.
        memory: bytes of the state in the first phase by kind: `parameters`, `slots`,
            `collections`, `average` (where one of the weights is kept), `total`.
        devices: the mesh, and what each device gets of a batch and holds of the state.
        loss: the loss, by name.
        spec: the optimizer spec, with all durations resolved.
        learning_rate: the spec's learning rate at the first, middle and last update, by update
            number; empty where only an optimizer object knows it.
        initial_values: where the first values come from, as sentences; empty where all are
            drawn.
        batch: shape and dtype of every leaf of a batch.
        options: how a step is made, where it is no plain one.
        dtypes: in which parameters are stored, modules compute and the model puts out.
        notes: what was decided without being asked for.
        warnings: what looks wrong.

    Example:
        >>> import flax.linen as nn, flaxtrain as ft, numpy as np
        >>> spec = ft.OptSpec("adam", 1e-3, freeze="layers_0/**")
        >>> trainer = ft.Trainer(nn.Sequential([nn.Dense(4), nn.Dense(2)]), spec)
        >>> data = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> plan = trainer.plan(data, steps=10, batch_size=4)
        >>> [(row.path, row.trainable) for row in plan.table.rows if row.role == "kernel"]
        [('layers_0/kernel', False), ('layers_1/kernel', True)]
        >>> plan.phases[0].values, plan.groups[0].learning_rate
        (10, {0: 0.001, 4: 0.001, 9: 0.001})
    """

    table: Table
    groups: tuple[PlannedGroup, ...]
    overlaps: tuple[str, ...]
    phases: tuple[PlannedPhase, ...]
    layers: tuple[PlannedLayer, ...]
    presets: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    horizon: Horizon
    memory: dict[str, int]
    devices: PlannedDevices
    loss: str
    spec: str
    learning_rate: AtUpdates
    initial_values: tuple[str, ...]
    batch: dict[str, str]
    options: str
    dtypes: PlannedDtypes
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        stream: Stream,
        horizon: Horizon,
        notes: tuple[str, ...],
        initial_values: tuple[str, ...] = (),
        devices: PlannedDevices = ONE_STEP_ON_ONE_DEVICE,
    ) -> Plan:
        """Makes the plan of a recipe on a data stream, by abstract evaluation only.

        Args:
            recipe: the recipe of any phase.
            stream: the data.
            horizon: the length of the run.
            notes: what was decided so far without being asked for.
            initial_values: where the first values come from.
            devices: what each device gets of a batch, and holds.
        """
        assignment = recipe.assignment
        accumulation = recipe.spec.accumulation
        recipe = recipe.at(0)
        state = jax.eval_shape(recipe.init)
        leaves = jax.tree_util.tree_leaves_with_path(recipe.example)
        groups = planned_groups(assignment, horizon)
        return cls(
            table=parameter_table(recipe),
            groups=groups,
            overlaps=assignment.overlaps,
            phases=planned_phases(recipe, state),
            layers=planned_layers(assignment, recipe.facts),
            presets=_presets(recipe, assignment),
            horizon=horizon,
            memory=memory_by_kind(recipe, state),
            devices=devices,
            loss=_loss_name(recipe),
            spec=spec_text(recipe.spec),
            learning_rate=groups[-1].learning_rate,
            initial_values=initial_values,
            batch={
                jax.tree_util.keystr(
                    path, simple=True, separator="/"
                ): f"{leaf.dtype}{list(leaf.shape)}"
                for path, leaf in leaves
            },
            options="; ".join(
                filter(
                    None,
                    (
                        accumulation.describe(stream.rows),
                        recipe.options.describe(),
                        describe_average(recipe.spec.ema),
                    ),
                )
            ),
            dtypes=planned_dtypes(recipe, state),
            notes=notes,
            warnings=(
                *warnings_of(recipe, stream, horizon),
                *begun_updates(horizon.batches, accumulation),
            ),
        )

    def __str__(self) -> str:
        """Returns the plan as text."""
        return self.text()

    def text(self, *, rules: bool = False) -> str:
        """Returns the plan as text.

        Args:
            rules: whether the table of parameters has a column with the evidence that decided
                each role.
        """
        tables = [str(table) for table in self._tables().values()]
        margin = "\n" + " " * _WIDTH
        lines = (f"{w:<{_WIDTH}}{line.replace(chr(10), margin)}" for w, line in self._lines())
        text = "\n".join(lines)
        return "\n\n".join([self.table.text(rules=rules), *tables, text])

    def markdown(self) -> str:
        """Returns the plan as markdown, with the evidence for each role; for TensorBoard."""
        parts = ["### parameters", self.table.markdown(rules=True)]
        for title, table in self._tables().items():
            parts += [f"### {title}", table.markdown()]
        lines = [f"- **{word}** {line}" for word, line in self._lines() if word != "spec"]
        return "\n\n".join([*parts, "### run", "\n".join(lines), f"```\n{self.spec}\n```"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON data."""
        data = {**asdict(self), "spec": self.spec}
        if self.spec.startswith("{"):
            data["spec"] = json.loads(self.spec)
        # Update numbers become text, and tuples lists, as JSON has them.
        return json.loads(json.dumps(data))

    def _tables(self) -> dict[str, TextTable]:
        tables = {"groups": groups_table(self.groups)}
        if len(self.phases) > 1:
            tables["phases"] = phases_table(self.phases, self.horizon.updates)
        if self.layers:
            tables["layers"] = layers_table(self.layers)
        return tables

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yields what isn't in a table: a word, and the line behind it."""
        total, length = self.horizon.batches, self.horizon.batches_per_epoch
        count = self.horizon.batches_per_update
        updates = None if total is None else total // count
        yield "loss", self.loss
        yield from (("start", line) for line in self.initial_values)
        yield "batch", ", ".join(f"{name} {form}" for name, form in self.batch.items())
        if self.options:
            yield "step", self.options
        yield "dtypes", str(self.dtypes)
        yield (
            "batches",
            f"{'unknown' if total is None else total}"
            f" ({'unknown' if length is None else length} per epoch)"
            + (f", {updates} updates" if updates != total else ""),
        )
        yield "state", self._state_line()
        yield from self.devices.lines()
        yield from self._frozen_lines()
        yield from self._preset_lines()
        yield "spec", self.spec
        for word, lines in (
            ("note", (*self.overlaps, *self.notes)),
            ("warning", self.warnings),
        ):
            yield from ((word, line) for line in lines)

    def _state_line(self) -> str:
        total = self.horizon.updates
        reached = [p for p in self.phases if total is None or p.start < total]
        largest = max(reached, key=lambda phase: phase.slots)
        line = ", ".join(f"{kind} {readable_bytes(n)}" for kind, n in self.memory.items())
        if largest.slots == self.phases[0].slots:
            return line
        return f"{line}; from step {largest.start} on, slots {readable_bytes(largest.slots)}"

    def _frozen_lines(self) -> Iterator[tuple[str, str]]:
        before: Mapping[str, tuple[str, ...]] = {}
        for phase in self.phases:
            since = f"from step {phase.start} on: " if phase.start else ""
            if phase.frozen_modules != before:
                behaviour = (f"{listed(m)} {how}" for how, m in phase.frozen_modules.items())
                yield "frozen modules", since + ("; ".join(behaviour) or "none")
            before = phase.frozen_modules

    def _preset_lines(self) -> Iterator[tuple[str, str]]:
        same = [name for name, (more, fewer) in self.presets.items() if not more + fewer]
        if same:
            yield "decay presets", f"{', '.join(same)}: the same"
        for name, (more, fewer) in self.presets.items():
            found = [
                f"{len(names)} {word} ({listed(names, shown=3)})"
                for word, names in (("more", more), ("fewer", fewer))
                if names
            ]
            if found:
                yield "decay presets", f"{name}: {', '.join(found)}"


def parameter_table(recipe: Recipe) -> Table:
    """Returns the table of parameters; a column is there where there is something to say."""
    assignment, facts = recipe.assignment, recipe.facts
    params = assignment.params
    groups = {group.name: group for group in assignment.groups}
    times = {path: when(assignment, path) for path in params}
    factors = {
        path: range_text(groups[about.group].lr_mult * about.scale)
        for path, about in params.items()
    }
    table = overview(
        facts,
        decay=facts.tree(lambda fact: params[fact.path].decays and times[fact.path] != "no"),
        groups=facts.tree(lambda fact: params[fact.path].group) if len(groups) > 1 else None,
        trainable=facts.tree(lambda fact: times[fact.path] != "no"),
        lr_mult=facts.tree(lambda fact: factors[fact.path])
        if set(factors.values()) - {"1"}
        else None,
        when=facts.tree(lambda fact: _unless_constant(times[fact.path])),
    )
    # What an optimizer object decays is not known.
    named = {about.fact.name for about in params.values() if groups[about.group].spec.name}
    rows = (row if row.path in named else replace(row, decay=None) for row in table.rows)
    totals = (line for line in table.totals if named or not line.startswith("decayed"))
    return replace(table, rows=tuple(rows), totals=tuple(totals))


def _unless_constant(time: str) -> str:
    return "" if time in ("yes", "no") else time


def _presets(
    recipe: Recipe, assignment: Assignment
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    numbers = (group.hyperparameters.numbers for group in assignment.groups if group.paths)
    if not any("weight_decay" in own for own in numbers):
        return {}
    params = assignment.params
    mask = recipe.facts.tree(lambda fact: params[fact.path].decays)
    return preset_differences(recipe.facts, mask)


def spec_data(spec: OptSpec) -> dict[str, Any] | None:
    """Returns a spec as JSON data; None when it holds code (a function, a foreign object)."""
    try:
        return spec.to_dict()
    except ArgumentTypeError:
        return None


def spec_text(spec: OptSpec) -> str:
    """Returns a spec as JSON text, or its `repr` when it holds code."""
    data = spec_data(spec)
    return repr(spec) if data is None else json.dumps(data, indent=2)


def _loss_name(recipe: Recipe) -> str:
    if recipe.supervised is not None:
        return recipe.supervised.name
    loss_fn = recipe.loss_fn
    if isinstance(loss_fn, CollectionLoss):
        loss_fn = loss_fn.loss_fn
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)
