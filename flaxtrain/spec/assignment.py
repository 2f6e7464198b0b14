"""Who gets what: the group, decay, rate factor and phases of every parameter, in one table.

A spec is resolved against the facts once. The transformation, the overview, the plan and the
trainer read this table; none of them asks a selector again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, FlaxtrainError, ParameterError
from flaxtrain.optim import NAMED
from flaxtrain.params import Facts, ParamFact, decay_mask, select, selector
from flaxtrain.spec.clip import Clip
from flaxtrain.spec.group import DEFAULT, Group
from flaxtrain.spec.hyperparameters import Hyperparameters
from flaxtrain.spec.layer_decay import LayerDecay, multipliers
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.phases import Changes, Phase, changes_at, phase_at, phases_of
from flaxtrain.text import counted
from flaxtrain.tree import Path, flatten, path_name

__all__ = ["AssignedGroup", "AssignedParam", "Assignment", "assign"]

Scale: TypeAlias = Any
"""A factor of the learning rate: a float, or a numpy array that broadcasts."""

# The trust ratio is a ratio of norms, which says nothing about a vector of offsets or scales.
_WITHOUT_TRUST = ("bias", "norm_scale", "norm_bias")


@dataclass(frozen=True)
class AssignedGroup:
    """A group of parameters with all that holds for it.

    Attributes:
        name: its name.
        selected_by: what selects its parameters, as text.
        spec: what holds for it: the spec with what the group says for itself.
        lr_mult: factor of the learning rate.
        hyperparameters: its adjustable numbers.
        clips: how its gradient is clipped, in order; that of the group `"default"`, how the
            whole gradient is.
        paths: its parameters.
    """

    name: str
    selected_by: str
    spec: OptSpec
    lr_mult: float
    hyperparameters: Hyperparameters
    clips: tuple[Clip, ...]
    paths: frozenset[Path]


@dataclass(frozen=True)
class AssignedParam:
    """What the optimizer does to one parameter.

    Attributes:
        fact: the facts about it.
        group: the name of its group.
        decays: whether weight decay applies.
        scale: factor of its group's learning rate, from layer-wise decay.
        trusted: whether a trust ratio applies, where the optimizer has one.
    """

    fact: ParamFact
    group: str
    decays: bool
    scale: Scale
    trusted: bool


@dataclass(frozen=True)
class Assignment:
    """Who gets what in a run.

    Attributes:
        spec: the spec, with all durations in steps.
        groups: the groups, in order; the last is `"default"`, the only one that may be empty.
        params: what happens to each parameter, by path.
        phases: the stretches of the run, in order.
        overlaps: sentences about parameters that several groups select.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> from flaxtrain.spec import Freeze
        >>> spec = OptSpec("adam", 0.1, freeze=[Freeze("kernel", until=10)])
        >>> table = assign(spec, param_facts(nn.Dense(4), jnp.ones((1, 3))))
        >>> table.phase_at(9), table.phase_at(10)
        (Phase(0, steps 0:10, 1 trained), Phase(1, steps 10:, 2 trained))
        >>> table.changes(table.phases[1]).thaws
        ('kernel',)
    """

    spec: OptSpec
    groups: tuple[AssignedGroup, ...]
    params: Mapping[Path, AssignedParam]
    phases: tuple[Phase, ...]
    overlaps: tuple[str, ...]

    @property
    def ever_trained(self) -> frozenset[Path]:
        """The parameters that are trained in any phase."""
        return frozenset[Path]().union(*(phase.trained for phase in self.phases))

    def phase_at(self, step: int) -> Phase:
        """Returns the phase that a step is in."""
        return phase_at(self.phases, step)

    def changes(self, phase: Phase) -> Changes:
        """Returns which parameters thaw and freeze when a phase begins."""
        return changes_at(self.phases, phase)

    def group(self, name: str) -> AssignedGroup:
        """Returns a group by its name."""
        return next(group for group in self.groups if group.name == name)

    def __repr__(self) -> str:
        return (
            f"<{counted(len(self.params), 'parameter')}, {counted(len(self.groups), 'group')}, "
            f"{counted(len(self.phases), 'phase')}>"
        )


def assign(
    spec: OptSpec,
    facts: Facts,
    horizon: Horizon | None = None,
    *,
    still: frozenset[Path] = frozenset(),
) -> Assignment:
    """Resolves a spec against the table of parameters.

    Args:
        spec: what the optimizer does.
        facts: the table of the model's parameters.
        horizon: the length of the run, for durations that are still relative.
        still: parameters that are never trained, because adapters beside them are.

    Raises:
        ParameterError: a selector matches nothing, a group is left with no parameter, a decay
            mask does not fit, everything is frozen, or `decay_to="init"` and nothing that is
            trained decays.
        ArgumentError: `horizon` lacks what a relative duration needs, or an optimizer can't do
            what is asked of its slots or its learning rate.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Sequential([nn.Dense(4), nn.Dense(2)]), jnp.ones((1, 3)))
        >>> spec = OptSpec("adam", 0.1, groups=[Group("layers_1/**", name="head", lr_mult=3.0)])
        >>> table = assign(spec, facts)
        >>> table, [(group.name, len(group.paths)) for group in table.groups]
        (<4 parameters, 2 groups, 1 phase>, [('head', 2), ('default', 2)])
    """
    spec = spec.resolve(horizon or Horizon())
    members, overlaps = _members(spec, facts)
    groups = [
        _assigned(spec, group, label, members[label])
        for label, group in zip(labels_of(spec), spec.groups)
    ]
    rest = frozenset(facts) - frozenset().union(*members.values())
    groups.append(_assigned(spec, Group("**"), DEFAULT, rest, "everything else"))
    scales = _scales(spec, facts)
    params: dict[Path, AssignedParam] = {}
    for group in groups:
        decayed = _decayed(group, facts, spec)
        for path in group.paths:
            fact = facts[path]
            params[path] = AssignedParam(
                fact,
                group.name,
                decays=path in decayed,
                scale=scales.get(path, 1.0),
                trusted=fact.role not in _WITHOUT_TRUST,
            )
    ordered = {path: params[path] for path in facts}
    phases = phases_of(spec.freeze, facts, still)
    _check_kept(groups, phases)
    _check_rewarmed(groups, phases)
    _check_pulled(spec, params, phases)
    return Assignment(spec, tuple(groups), MappingProxyType(ordered), phases, tuple(overlaps))


def _check_kept(groups: Sequence[AssignedGroup], phases: Sequence[Phase]) -> None:
    """Refuses to keep frozen slots in the state of an object: it updates all that it has."""
    objects = [group for group in groups if group.spec.name is None]
    for group in objects:
        for phase in phases:
            kept = [path for path in group.paths & phase.with_slots if path in phase.frozen]
            if kept:
                raise ArgumentError(
                    f"the slots of {path_name(min(kept))!r} are to be kept while it is frozen, "
                    "and an optimizer object can't leave them alone",
                    where=f"group {group.name!r}: Freeze(slots='keep')",
                    fix="pass slots='drop', or the optimizer by name",
                )


def _check_rewarmed(groups: Sequence[AssignedGroup], phases: Sequence[Phase]) -> None:
    """Refuses to re-warm a learning rate that is not looked at again."""
    for group in groups:
        name = group.spec.name
        if name is None or "learning_rate" not in NAMED[name].initial_only:
            continue
        for phase in phases:
            rewarmed = [
                p for p in group.paths & phase.trained.keys() if phase.trained[p].rewarm
            ]
            if rewarmed:
                raise ArgumentError(
                    f"the learning rate of {path_name(min(rewarmed))!r} can't rise: {name} "
                    "reads it only once, when step sizes begin",
                    where=f"group {group.name!r}: Freeze(rewarm=...)",
                    fix="leave rewarm out, or choose another optimizer for the group",
                )


def _check_pulled(
    spec: OptSpec, params: Mapping[Path, AssignedParam], phases: Sequence[Phase]
) -> None:
    """Refuses to say where decay pulls to where nothing that is trained decays."""
    trained = {path for phase in phases for path in phase.trained}
    if spec.decay_to == "init" and not any(params[path].decays for path in trained):
        raise ParameterError(
            "decay_to='init', and no trained parameter decays",
            where=f"OptSpec({spec.optimizer!r})",
            fix="pass a weight_decay above 0 and a decay that selects trained parameters, or "
            "leave decay_to out",
        )


def labels_of(spec: OptSpec) -> list[str]:
    """Returns the names of a spec's groups."""
    return [group.label(index) for index, group in enumerate(spec.groups)]


def _members(spec: OptSpec, facts: Facts) -> tuple[dict[str, frozenset[Path]], list[str]]:
    """Returns the parameters of each group, first match wins, and sentences about overlaps."""
    members: dict[str, frozenset[Path]] = {}
    overlaps = []
    for group, label in zip(spec.groups, labels_of(spec)):
        where = f"Group({group.select!r})"
        chosen = select(facts, group.select, where=where)
        for other, taken in list(members.items()):
            if both := chosen & taken:
                name = facts[min(both)].name
                overlaps.append(
                    f"group {label!r} also selects {len(both)} of group {other!r} "
                    f"({name!r}): the first of the two has them"
                )
            chosen -= taken
        if not chosen:
            raise ParameterError(
                "earlier groups have all of its parameters",
                where=where,
                fix="put the narrower group first: the first match wins",
            )
        members[label] = chosen
    return members, overlaps


def _assigned(
    spec: OptSpec, group: Group, label: str, paths: frozenset[Path], selected_by: str = ""
) -> AssignedGroup:
    merged, factor = spec.merged(group)
    entry = NAMED[merged.name] if merged.name is not None else None
    decay: Any = merged.weight_decay
    if decay is None and entry is not None:
        decay = entry.weight_decay
    clips = (spec if label == DEFAULT else merged).clips
    given = {
        **_defaults(merged),
        "learning_rate": merged.learning_rate,
        # Off is off: 0 x parameter would cost a read, and turn an infinite one into NaN.
        "weight_decay": None if is_zero(decay) else decay,
        **{clip.number: clip.bound for clip in clips},
    }
    return AssignedGroup(
        label,
        selected_by or str(selector(group.select, where=f"Group({group.select!r})")),
        merged,
        factor,
        Hyperparameters.of(entry, given),
        clips,
        paths,
    )


def is_zero(value: Any) -> bool:
    """Whether a weight decay is the number zero, or None."""
    return value is None or (not callable(value) and not hasattr(value, "aval") and value == 0)


def _defaults(spec: OptSpec) -> dict[str, Any]:
    """Returns the hyperparameters of a named optimizer, its defaults included."""
    if spec.name is None:
        return {}
    return {**NAMED[spec.name].defaults, **dict(spec.hyperparameters)}


def _scales(spec: OptSpec, facts: Facts) -> Mapping[Path, Scale]:
    if spec.layer_decay is None:
        return {}
    rule = spec.layer_decay
    return multipliers(rule if isinstance(rule, LayerDecay) else LayerDecay(rule), facts)


def _decayed(group: AssignedGroup, facts: Facts, spec: OptSpec) -> frozenset[Path]:
    """Returns the parameters of a group that decay."""
    if "weight_decay" not in group.hyperparameters.numbers:
        return frozenset()
    try:
        mask = flatten(decay_mask(facts, group.spec.decay))
    except FlaxtrainError as error:
        where = f"group {group.name!r}: {error.where}"
        raise type(error)(error.found, where=where, fix=error.fix) from None
    chosen = frozenset(path for path in group.paths if mask[path])
    if chosen or group.name == DEFAULT or group.spec.weight_decay is None:
        return chosen
    if group.spec.weight_decay != spec.weight_decay:  # the group says so itself
        roles = ", ".join(sorted({facts[path].role for path in group.paths}))
        raise ParameterError(
            f"weight_decay={group.spec.weight_decay!r}, and none of the group's parameters "
            f"decays (their roles: {roles})",
            where=f"group {group.name!r}",
            fix="pass decay='all' to the group, or leave its weight_decay out",
        )
    return chosen
