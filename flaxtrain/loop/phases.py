"""What a person is told about the phases of a run."""

from __future__ import annotations

from flaxtrain.spec import Assignment, Phase
from flaxtrain.text import counted, listed

__all__ = ["describe_phase"]


def describe_phase(assignment: Assignment, phase: Phase) -> str:
    """Returns a sentence about what changes when a phase begins.

    Args:
        assignment: the phases of the run.
        phase: one of them, not the first.
    """
    thawed, frozen = assignment.changes(phase)
    changes = [
        f"{word} {counted(len(names), 'parameter')} ({listed(names, shown=3)})"
        for word, names in (("trains", thawed), ("freezes", frozen))
        if names
    ]
    number = f"phase {phase.index + 1} of {len(assignment.phases)}"
    changed = " and ".join(changes) or "changes how frozen modules behave"
    return f"{number}, from step {phase.start}, {changed}; the training step is compiled anew"
