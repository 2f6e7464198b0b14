"""One optimizer over the parameters of the groups that share it.

Parameters that are treated alike at one update are a *cohort*: they have the numbers of one
group, slots of one age, and one dtype. Each cohort is a lane of its own through the stages; all
lanes share one dict of slots, so that regrouping does not change what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from flaxtrain.errors import ArgumentError
from flaxtrain.optim import (
    NAMED,
    GradientTransformation,
    safe_increment,
)
from flaxtrain.optim.sgd import GradientDescent
from flaxtrain.optim.stages import Lane, Place, Stage, init_stages, slot_names, update_stages
from flaxtrain.optim.transform import same_value
from flaxtrain.optim.trust_ratio import TrustRatio
from flaxtrain.spec.assignment import AssignedGroup, AssignedParam, Assignment
from flaxtrain.spec.group import DEFAULT
from flaxtrain.spec.hyperparameters import Numbers, Value, in_dtype
from flaxtrain.spec.object_part import Leaves, ObjectPart
from flaxtrain.spec.phases import Activity, Phase
from flaxtrain.tree import Path, flatten, unflatten, widened
from flaxtrain.typing import Array, ArrayLike

# Nothing here is public: `build` is.
__all__ = []

INITIAL = "initial"
"""The slot with the values that weight decay pulls towards."""

# The methods in which the trust ratio is an addition; Fromage is nothing else.
_WITH_TRUST = ("lamb", "lars")


class Cohort(NamedTuple):
    """What parameters have in common that are treated alike at one update."""

    group: str
    activity: Activity
    trusted: bool
    dtype: Any


@dataclass(frozen=True)
class NamedPart:
    """A named optimizer and the groups that have it.

    Attributes:
        groups: the groups, by name.
        params: what happens to their parameters.
    """

    groups: Mapping[str, AssignedGroup]
    params: Mapping[Path, AssignedParam]

    @property
    def label(self) -> str:
        """`"default"` if that group is among them, else the name of the first one."""
        return DEFAULT if DEFAULT in self.groups else next(iter(self.groups))

    def init(self, leaves: Leaves) -> dict[str, Any]:
        """Returns the slots before the first update: by name, nested dicts like the params."""
        slots: dict[str, Any] = {}
        for group in self.groups.values():
            own = {path: leaf for path, leaf in leaves.items() if path in group.paths}
            rules = [s for s in _initial_stages(group) if not _is_whole(s)]
            for name, tree in init_stages(rules, widened(own)).items():
                slots[name] = {**slots.get(name, {}), **tree}
        # What looks across parameters has one state for those of all groups.
        first = next(iter(self.groups.values()))
        whole = [stage for stage in _initial_stages(first) if _is_whole(stage)]
        slots |= init_stages(whole, widened(unflatten(leaves)))
        if first.spec.decay_to == "init":
            # A copy: the parameter itself is donated to the step.
            slots[INITIAL] = {
                path: jnp.array(leaf, copy=True)
                for path, leaf in leaves.items()
                if self.params[path].decays
            }
        return {name: _nested(tree) for name, tree in slots.items()}

    def update(
        self,
        count: Array,
        phase: Phase,
        grads: Leaves,
        slots: Mapping[str, Any],
        params: Leaves,
        numbers: Mapping[str, Numbers],
        **extra_args: Any,
    ) -> tuple[Leaves, dict[str, Any]]:
        """Makes one update of the parameters that have gradients."""
        flat = {name: _flat(tree) for name, tree in slots.items()}
        initial = flat.pop(INITIAL, {})
        params = widened(params)
        cohorts = self._cohorts(grads, params, phase)
        lanes = [
            self._lane(
                cohort,
                safe_increment(count) - (phase.start - cohort.activity.age),
                {path: grads[path] for path in paths},
                {path: params[path] for path in paths},
                _rewarmed(numbers[cohort.group], cohort.activity, count),
                initial,
            )
            for cohort, paths in cohorts.items()
        ]
        done, flat = update_stages(lanes, flat, **extra_args)
        updates: Leaves = {}
        for lane in done:
            updates |= lane
        new = {**flat, INITIAL: initial} if INITIAL in slots else flat
        return self._finished(updates), {name: _nested(tree) for name, tree in new.items()}

    def _cohorts(self, grads: Leaves, params: Leaves, phase: Phase) -> dict[Cohort, list[Path]]:
        table: dict[Cohort, list[Path]] = {}
        for path in grads:
            about = self.params[path]
            with_trust = self.groups[about.group].spec.name in _WITH_TRUST
            cohort = Cohort(
                about.group,
                phase.trained[path],
                about.trusted or not with_trust,
                jnp.asarray(params[path]).real.dtype,
            )
            table.setdefault(cohort, []).append(path)
        return table

    def _lane(
        self,
        cohort: Cohort,
        t: Array,
        grads: Leaves,
        params: Leaves,
        numbers: Numbers,
        initial: Leaves,
    ) -> Lane:
        rate = jnp.asarray(numbers.learning_rate, cohort.dtype)
        hyper = in_dtype(numbers.hyperparams, cohort.dtype)
        weight_decay: Any = hyper.get("weight_decay", 0.0)

        def decayed(updates: Leaves, sign: int) -> Leaves:
            def add(path: Path, update: Array | None) -> Array | None:
                if update is None or not self.params[path].decays:
                    return update
                away = params[path] - initial[path] if initial else params[path]
                return update + sign * weight_decay * away

            return {path: add(path, update) for path, update in updates.items()}

        def rated(updates: Leaves) -> Leaves:
            return {
                path: _scaled(update, -rate, self._scale_at_rate(path))
                for path, update in updates.items()
            }

        stages = _stages(self.groups[cohort.group], rate, hyper, trusted=cohort.trusted)
        return Lane(stages, t, grads, params, decayed, rated)

    def _uses_rate_inside(self) -> bool:
        """Whether the method uses the learning rate at other places than `RATE`."""
        first = next(iter(self.groups.values()))
        return NAMED[str(first.spec.name)].uses_learning_rate

    def _scale_at_rate(self, path: Path) -> Any:
        return 1.0 if self._uses_rate_inside() else self.params[path].scale

    def _finished(self, updates: Leaves) -> Leaves:
        """Scales the updates of methods without a single place for the learning rate."""
        if not self._uses_rate_inside():
            return updates
        return {
            path: _scaled(update, 1.0, self.params[path].scale)
            for path, update in updates.items()
        }


Part: TypeAlias = NamedPart | ObjectPart


def parts_of(assignment: Assignment) -> tuple[Part, ...]:
    """Returns the optimizers of a run: groups that differ only in numbers share one.

    Raises:
        ArgumentError: groups differ in something that the optimizer has only once.
    """
    shared: dict[Any, dict[str, AssignedGroup]] = {}
    for group in assignment.groups:
        if group.paths or len(assignment.groups) == 1:
            key = group.name if group.spec.name is None else _slots_of(group)
            shared.setdefault(key, {})[group.name] = group
    return tuple(_part(groups, assignment) for groups in shared.values())


def _part(groups: dict[str, AssignedGroup], assignment: Assignment) -> Part:
    first, *others = groups.values()
    if first.spec.name is None:
        part = ObjectPart(first)
        part.check(assignment)
        return part
    if any(map(_is_whole, _initial_stages(first))):
        for other in others:
            if not same_value(_own_numbers(first), _own_numbers(other)):
                raise ArgumentError(
                    f"{first.spec.name} treats all parameters together: its own numbers can't "
                    f"be others than in group {first.name!r}",
                    where=f"group {other.name!r}",
                    fix="leave them out",
                )
    return NamedPart(groups, assignment.params)


def shared_numbers(group: AssignedGroup) -> tuple[str, ...]:
    """Returns the hyperparameters that an optimizer has once for all of its groups."""
    if group.spec.name is None or not any(map(_is_whole, _initial_stages(group))):
        return ()
    return NAMED[group.spec.name].hyperparameters


def _is_whole(stage: Stage) -> bool:
    return isinstance(stage, GradientTransformation)


def _own_numbers(group: AssignedGroup) -> dict[str, Any]:
    """Returns all that the stages of a group are made from."""
    entry = NAMED[str(group.spec.name)]
    given = {**entry.defaults, **dict(group.spec.hyperparameters)}
    if entry.uses_learning_rate:
        given |= {"learning_rate": group.spec.learning_rate, "lr_mult": group.lr_mult}
    return given


def _slots_of(group: AssignedGroup) -> Any:
    """Returns what groups must have in common to share one tree of slots."""
    stages = _initial_stages(group)
    kinds = tuple(stage if isinstance(stage, Place) else type(stage) for stage in stages)
    return group.spec.name, kinds, tuple(slot_names(stages))


def _initial_stages(group: AssignedGroup) -> tuple[Stage, ...]:
    """Returns a group's stages with their numbers as they are at the beginning."""
    numbers = group.hyperparameters.initial()
    rate: Any = numbers["learning_rate"]
    return _stages(group, rate * group.lr_mult, numbers)


def _stages(
    group: AssignedGroup, rate: Any, numbers: Mapping[str, Value], *, trusted: bool = True
) -> tuple[Stage, ...]:
    entry = NAMED[str(group.spec.name)]
    own = {name: value for name, value in numbers.items() if name in entry.hyperparameters}
    stages = entry.stages(rate, **{**dict(group.spec.hyperparameters), **own})
    if trusted:
        return stages
    return tuple(GradientDescent() if isinstance(s, TrustRatio) else s for s in stages)


def _rewarmed(numbers: Numbers, activity: Activity, count: Array) -> Numbers:
    return numbers._replace(learning_rate=numbers.learning_rate * rewarming(activity, count))


def rewarming(activity: Activity, count: Array) -> ArrayLike:
    """Returns the factor by which the learning rate of a thawed parameter is still smaller."""
    if activity.thawed is None or not activity.rewarm:
        return 1.0
    return jnp.minimum(1.0, (count - activity.thawed + 1) / activity.rewarm)


def _scaled(update: Array | None, factor: ArrayLike, scale: Any) -> Array | None:
    if update is None:
        return None
    dtype = update.real.dtype
    if jnp.ndim(scale) or scale != 1.0:
        return jnp.asarray(factor, dtype) * jnp.asarray(scale, dtype) * update
    return jnp.asarray(factor, dtype) * update


def _nested(tree: Any) -> Any:
    return unflatten(tree) if type(tree) is dict else tree


def _flat(tree: Any) -> Any:
    return flatten(tree) if type(tree) is dict else tree
