"""Groups, phases and layers of a plan as tables that a person reads."""

from __future__ import annotations

from collections.abc import Mapping

from flaxtrain.loop.plan_parts import AtUpdates, PlannedGroup, PlannedLayer, PlannedPhase
from flaxtrain.text import TextTable, listed, readable_bytes

# Nothing here is public: `Plan` prints them.
__all__ = []


def groups_table(groups: tuple[PlannedGroup, ...]) -> TextTable:
    """Returns the groups as a table."""
    steps = ", ".join(map(str, next((g.learning_rate for g in groups if g.learning_rate), ())))
    rate = f"learning rate at {steps}" if steps else "learning rate"
    norms_only = all(set(group.clips) <= {"clip_norm"} for group in groups)
    clipping = "clip_norm" if norms_only else "clipping"
    columns = ("group", "selects", "optimizer", rate, "lr_mult", "weight_decay", clipping)
    rows = tuple(
        (
            group.name,
            group.selects,
            group.optimizer,
            _course_text(group.learning_rate) or "in the object",
            f"{group.lr_mult:.3g}",
            _course_text(group.weight_decay) or "-",
            (_course_text(group.clip_norm) if norms_only else _clips_text(group.clips)) or "-",
            f"{group.parameters:,}",
            f"{group.values:,}",
        )
        for group in groups
    )
    right = ("parameters", "values")
    return TextTable((*columns, *right), rows, right=right, code=("selects",))


def _clips_text(clips: Mapping[str, AtUpdates]) -> str:
    return "; ".join(f"{name} {_course_text(course)}" for name, course in clips.items())


def _course_text(course: AtUpdates) -> str:
    values = [f"{value:.3g}" for value in course.values()]
    return ", ".join(values if len(set(values)) > 1 else values[:1])


def phases_table(phases: tuple[PlannedPhase, ...], total: int | None) -> TextTable:
    """Returns the phases as a table."""
    right = ("trained", "values", "slots")
    rows = tuple(
        (
            f"{phase.start}:{'' if phase.stop is None else phase.stop}",
            f"{phase.parameters:,}",
            f"{phase.values:,}",
            readable_bytes(phase.slots),
            _changes(phase, reached=total is None or phase.start < total),
        )
        for phase in phases
    )
    return TextTable(("steps", *right, "what changes"), rows, right=right)


def _changes(phase: PlannedPhase, *, reached: bool) -> str:
    if not reached:
        return "(after the end of the run)"
    changes = [
        f"{word} {len(names)} ({listed(names, shown=3)})"
        for word, names in (("trains", phase.thaws), ("freezes", phase.freezes))
        if names
    ]
    return ", ".join(changes) or ("how frozen modules behave" if phase.start else "")


def layers_table(planned: tuple[PlannedLayer, ...]) -> TextTable:
    """Returns the layers as a table."""
    rows = tuple(
        (str(number), layer.lr_mult, layer.trainable, listed(layer.modules))
        for number, layer in enumerate(planned)
    )
    return TextTable(("layer", "lr_mult", "trainable", "modules"), rows, right=("layer",))
