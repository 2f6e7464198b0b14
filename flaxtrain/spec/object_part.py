"""An optimizer object over the parameters of its group, and what does not go with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError
from flaxtrain.optim import TransformationLike, with_extra_args
from flaxtrain.schedules import Schedule
from flaxtrain.spec.applied import rates_of
from flaxtrain.spec.assignment import AssignedGroup, Assignment
from flaxtrain.spec.hyperparameters import Numbers
from flaxtrain.spec.needs import check_needs
from flaxtrain.spec.phases import Phase
from flaxtrain.tree import Path, flatten, path_name, unflatten
from flaxtrain.typing import Array

# Nothing here is public: `build` is.
__all__ = []

Leaves: TypeAlias = dict[Path, Any]
"""A tree of parameters as a flat dict."""


@dataclass(frozen=True)
class ObjectPart:
    """An optimizer object and the group that has it.

    Attributes:
        group: the group.
    """

    group: AssignedGroup

    @property
    def label(self) -> str:
        """The name of the group."""
        return self.group.name

    @property
    def tx(self) -> TransformationLike:
        """The object."""
        given: Any = self.group.spec.optimizer
        return given

    @property
    def groups(self) -> Mapping[str, AssignedGroup]:
        """The group, by name."""
        return {self.label: self.group}

    def init(self, leaves: Leaves) -> Any:
        """Returns the object's own state."""
        return self.tx.init(unflatten(leaves))

    def update(
        self,
        count: Array,
        phase: Phase,
        grads: Leaves,
        slots: Any,
        params: Leaves,
        numbers: Mapping[str, Numbers],
        **extra_args: Any,
    ) -> tuple[Leaves, Any]:
        """Makes one update of the parameters that have gradients."""
        update = with_extra_args(self.tx).update
        updates, state = update(unflatten(grads), slots, unflatten(params), **extra_args)
        return flatten(updates), state

    def check(self, assignment: Assignment) -> None:
        """Refuses what an object can't do, in any phase of the run.

        Raises:
            ArgumentError: a duration in it is still relative; its rate or its slots would have
                to be reached into; or it can't do with the parameters it is given.
        """
        self._check_resolved()
        self._check_own_rate(assignment)
        self._check_one_age(assignment)
        for phase in assignment.phases:
            self._check_prunes(assignment, phase)
        self._check_needs(assignment)

    def _check_resolved(self) -> None:
        for rate in rates_of(self.tx).values():
            if isinstance(rate, Schedule) and not rate.is_resolved:
                raise ArgumentError(
                    f"durations in an optimizer object are still relative: {rate!r}",
                    where=f"{self.group.spec!r}",
                    fix="call resolve(horizon) on the schedule, or pass the optimizer by name",
                )

    def _check_own_rate(self, assignment: Assignment) -> None:
        paths = self.group.paths
        trained = [
            p.trained[path] for p in assignment.phases for path in paths & p.trained.keys()
        ]
        refused = {
            "layer_decay": any(np.any(assignment.params[p].scale != 1.0) for p in paths),
            "Freeze(rewarm=...)": any(activity.rewarm for activity in trained),
        }
        for name, is_used in refused.items():
            if is_used:
                raise ArgumentError(
                    f"{name} does not go with an optimizer object, which keeps its learning "
                    "rate and its state to itself",
                    where=f"group {self.label!r}",
                    fix="pass the optimizer of that group by name",
                )

    def _check_one_age(self, assignment: Assignment) -> None:
        """An object has one count: what thaws beside what is trained would start too old."""
        before: set[Path] = set()
        for phase in assignment.phases:
            trained = self.group.paths & phase.trained.keys()
            last = assignment.phases[max(0, phase.index - 1)]
            thaws = trained - last.trained.keys()
            if before and thaws:
                raise ArgumentError(
                    f"{path_name(min(thaws))!r} thaws at step {phase.start}, and the optimizer "
                    "object has counted updates by then: its first updates would be up to "
                    "three times too large",
                    where=f"group {self.label!r}",
                    fix="pass the optimizer by name, or put what thaws into a group with an "
                    "object of its own",
                )
            before |= trained

    def _check_needs(self, assignment: Assignment) -> None:
        """Tries an update of the parameters that are trained first."""
        seen = [self.group.paths & phase.trained.keys() for phase in assignment.phases]
        first = next(filter(None, seen), None)
        if first is not None:
            facts = [r.fact for path, r in assignment.params.items() if path in first]
            shapes = {f.path: jax.ShapeDtypeStruct(f.shape, f.dtype) for f in facts}
            check_needs(self.tx, shapes, assignment.spec)

    def _check_prunes(self, assignment: Assignment, phase: Phase) -> None:
        """Tries the object on the part of the params that it will see, by shapes only."""
        seen = self.group.paths & phase.with_slots
        if len(seen) == len(assignment.params):
            return
        facts = [row.fact for path, row in assignment.params.items() if path in seen]
        try:
            jax.eval_shape(
                lambda: self.init({f.path: jnp.zeros(f.shape, f.dtype) for f in facts})
            )
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ArgumentError(
                f"the optimizer object can't do with the {len(seen)} of "
                f"{len(assignment.params)} parameters that it is given: {reason}",
                where=f"{self.group.spec!r}, from step {phase.start}",
                fix="give masks and labels inside it as functions of the params, not as fixed "
                "trees; or pass the optimizer by name, with groups",
            ) from error
