"""When which parameters are trained: phases, each a function of `step` alone.

A parameter is frozen while any `Freeze` of the spec that selects it says so. Between two
changes lies a phase, in which the set of trained parameters is fixed; a training step is
compiled once for each.

Bias corrections count the updates of a slot's own life. In a phase that begins at step s, a
parameter whose slots have seen `age` updates by then is at its update number
`t = count - s + age + 1`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.params import Facts, layers, select
from flaxtrain.spec.freeze import Freeze
from flaxtrain.tree import Path, path_name

__all__ = ["Phase"]


class Activity(NamedTuple):
    """A trained parameter in one phase.

    Attributes:
        age: updates that its slots have seen when the phase begins.
        thawed: the step at which its training began anew; None if it always was trained.
        rewarm: number of steps over which its learning rate rises from there.
    """

    age: int
    thawed: int | None
    rewarm: int


class Frozen(NamedTuple):
    """A frozen parameter in one phase: what its module does, and whether its slots are kept."""

    stats: str
    mode: str
    keeps_slots: bool


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with a fixed set of trained parameters.

    Attributes:
        index: its number, from 0.
        start: the first step in it (updates made before it).
        stop: the first step after it; None for the last phase.
        trained: the trained parameters.
        frozen: the others.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> rules = [Freeze("bias", start=10, slots="keep"), Freeze("kernel", until=10)]
        >>> first, second = phases_of(rules, facts)
        >>> second.trained[("kernel",)].thawed, second.frozen[("bias",)].mode
        (10, 'eval')
        >>> [len(phase.with_slots) for phase in (first, second)]
        [1, 2]
    """

    index: int
    start: int
    stop: int | None
    trained: Mapping[Path, Activity]
    frozen: Mapping[Path, Frozen]

    @property
    def with_slots(self) -> frozenset[Path]:
        """The parameters that have slots: those trained, and frozen ones that keep theirs."""
        kept = (path for path, how in self.frozen.items() if how.keeps_slots)
        return frozenset((*self.trained, *kept))

    def __repr__(self) -> str:
        stop = "" if self.stop is None else self.stop
        return f"Phase({self.index}, steps {self.start}:{stop}, {len(self.trained)} trained)"


@dataclass(frozen=True)
class _Interval:
    """A parameter's freezing by one rule: from `start` until `stop` (None: for ever)."""

    start: int
    stop: int | None
    rule: Freeze

    def covers(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)


def phases_of(
    rules: Sequence[Freeze], facts: Facts, still: frozenset[Path] = frozenset()
) -> tuple[Phase, ...]:
    """Returns the phases of a run.

    Args:
        rules: with all durations in steps.
        facts: the table of parameters; those that are not inexact are never trained.
        still: parameters that are never trained, whatever the rules say: adapters beside them
            are. Their modules run as in training, with held statistics, unless rules freeze
            all that is in them.

    Raises:
        ParameterError: a rule selects no parameter, or is to thaw only what is never trained;
            or all parameters are frozen at some time.
    """
    intervals = _intervals(rules, facts, still)
    steps = {0}
    for rows in intervals.values():
        steps |= {i.start for i in rows} | {i.stop for i in rows if i.stop is not None}
    starts = _changes(sorted(steps), intervals)
    history: dict[Path, Activity] = {}
    phases: list[Phase] = []
    for index, start in enumerate(starts):
        stop = starts[index + 1] if index + 1 < len(starts) else None
        before = phases[-1] if phases else None
        phase = _phase(index, start, stop, intervals, facts, still, before, history)
        _check_trains(phase, facts)
        phases.append(phase)
    return tuple(phases)


def _changes(steps: Sequence[int], intervals: Mapping[Path, Sequence[_Interval]]) -> list[int]:
    """Returns the steps at which something changes: one rule may take over from another."""

    def said(step: int) -> dict[Path, Any]:
        in_force = _rules_at(step, intervals)
        return {path: (r.stats, r.mode, r.slots) for path, r in in_force.items()}

    pairs = itertools.pairwise(steps)
    return [*steps[:1], *(step for before, step in pairs if said(before) != said(step))]


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """Returns the phase that a step is in."""
    return phases[bisect.bisect_right([phase.start for phase in phases], step) - 1]


def shortened(
    phases: Sequence[Phase], length: int, updates: int | None = None
) -> tuple[Phase, ...]:
    """Returns the same phases, of `length` updates each; the last goes on.

    Args:
        phases: those of a run.
        length: of each phase, in updates.
        updates: those of the run; phases that begin after its end are left out.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> kernel = Freeze("kernel", until=500, rewarm=20)
        >>> rules = [kernel, Freeze("bias", start=800, slots="drop")]
        >>> phases = phases_of(rules, param_facts(nn.Dense(4), jnp.ones((1, 3))))
        >>> [(phase.start, phase.stop) for phase in shortened(phases, 2)]
        [(0, 2), (2, 4), (4, None)]
        >>> shortened(phases, 2, updates=800)[-1].trained[("kernel",)]
        Activity(age=0, thawed=2, rewarm=20)
    """
    reached = [phase for phase in phases if updates is None or phase.start < updates]
    starts = {phase.start: length * place for place, phase in enumerate(reached)}
    ages: dict[Path, int] = {}
    found: list[Phase] = []
    for phase in reached:
        start = starts[phase.start]
        ages |= {
            path: ages[path] + length if how.age and path in ages else 0
            for path, how in phase.trained.items()
        }
        trained = {
            path: Activity(
                ages[path], None if how.thawed is None else starts[how.thawed], how.rewarm
            )
            for path, how in phase.trained.items()
        }
        stop = None if phase is reached[-1] else start + length
        found.append(replace(phase, start=start, stop=stop, trained=trained))
    return tuple(found)


class Changes(NamedTuple):
    """What changes when a phase begins.

    Attributes:
        thaws: names of the parameters whose training begins.
        freezes: names of the parameters whose training ends.
    """

    thaws: tuple[str, ...]
    freezes: tuple[str, ...]


def changes_at(phases: Sequence[Phase], phase: Phase) -> Changes:
    """Returns what changes when one of the phases begins; in the first, nothing does."""
    before = phases[max(0, phase.index - 1)]
    return Changes(
        tuple(path_name(path) for path in phase.trained if path not in before.trained),
        tuple(path_name(path) for path in before.trained if path not in phase.trained),
    )


def _phase(
    index: int,
    start: int,
    stop: int | None,
    intervals: Mapping[Path, Sequence[_Interval]],
    facts: Facts,
    still: frozenset[Path],
    before: Phase | None,
    history: dict[Path, Activity],
) -> Phase:
    """Returns one phase; `history` holds what is known of parameters with slots, by path."""
    length = 0 if before is None else start - before.start
    trained: dict[Path, Activity] = {}
    frozen: dict[Path, Frozen] = {}
    in_force = _rules_at(start, intervals)
    # Adapted modules that rules freeze in part only: their kernel is trained, in effect.
    as_in_training = {
        facts[path].owner_path
        for path in still - in_force.keys()
        if jnp.issubdtype(facts[path].dtype, jnp.inexact)
    }
    for path, fact in facts.items():
        rule = in_force.get(path)
        behaviour = ("hold", "train") if rule is None else (rule.stats, rule.mode)
        if fact.owner_path in as_in_training:
            behaviour = ("hold", "train")
        was_trained = before is not None and path in before.trained
        if was_trained:
            old = history[path]
            history[path] = old._replace(age=old.age + length)
        if not jnp.issubdtype(fact.dtype, jnp.inexact):
            frozen[path] = Frozen("update", "train", False)
        elif path in still:
            frozen[path] = Frozen(*behaviour, keeps_slots=False)
        elif rule is not None:
            keeps = rule.slots == "keep" and path in history
            if not keeps:
                history.pop(path, None)
            frozen[path] = Frozen(*behaviour, keeps)
        else:
            if not was_trained:
                history[path] = _thawed(path, start, intervals, history)
            trained[path] = history[path]
    return Phase(index, start, stop, trained, frozen)


def _rules_at(step: int, intervals: Mapping[Path, Sequence[_Interval]]) -> dict[Path, Freeze]:
    """Returns the rule that freezes each parameter at a step; of several, the first."""
    covering = {
        path: [i.rule for i in rows if i.covers(step)] for path, rows in intervals.items()
    }
    return {path: rules[0] for path, rules in covering.items() if rules}


def _thawed(
    path: Path,
    start: int,
    intervals: Mapping[Path, Sequence[_Interval]],
    history: Mapping[Path, Activity],
) -> Activity:
    """Returns the activity of a parameter whose training begins, or begins anew, at `start`."""
    age = history[path].age if path in history else 0
    ended = [i.rule for i in intervals.get(path, ()) if i.stop == start]
    if not ended:
        return Activity(age, None, 0)
    return Activity(age, start, max(int(rule.rewarm) for rule in ended))


def _intervals(
    rules: Sequence[Freeze], facts: Facts, still: frozenset[Path]
) -> dict[Path, list[_Interval]]:
    table: dict[Path, list[_Interval]] = {}
    for rule in rules:
        paths = select(facts, rule.select, where=f"Freeze({rule.select!r})")
        if rule.until is not None and paths <= still:
            raise ParameterError(
                f"nothing would thaw at until={rule.until!r}: adapters are trained in the "
                "place of all that it selects",
                where=f"Freeze({rule.select!r})",
                fix="name what is trained beside the adapters in LoRA(train=...), or leave "
                "until= out",
            )
        stops = _stops(rule, sorted(paths), facts)
        for path in paths:
            stop = stops[path]
            start = int(rule.start)
            if stop is not None and stop <= start:
                raise ArgumentError(
                    f"until={rule.until!r} is {stop} steps, not after start={rule.start!r}",
                    where=f"Freeze({rule.select!r})",
                    fix="pass a later until",
                )
            table.setdefault(path, []).append(_Interval(start, stop, rule))
    return table


def _stops(rule: Freeze, paths: Sequence[Path], facts: Facts) -> dict[Path, int | None]:
    """Returns the step at which the training of each parameter begins."""
    if rule.until is None or rule.every is None:
        stop = None if rule.until is None else int(rule.until)
        return dict.fromkeys(paths, stop)
    sign = -1 if rule.order == "top_down" else 1
    of_layer = layers(facts).of
    # A stack of layers is one array: it thaws with the first of its layers that does.
    turn = {path: min(sign * n for n in _numbers(of_layer[path])) for path in paths}
    order = {number: place for place, number in enumerate(sorted(set(turn.values())))}
    until, every = int(rule.until), int(rule.every)
    return {path: until + every * order[turn[path]] for path in paths}


def _numbers(layer: Any) -> list[int]:
    return [int(number) for number in np.ravel(np.asarray(layer))]


def _check_trains(phase: Phase, facts: Facts) -> None:
    if not phase.trained and len(facts):
        raise ParameterError(
            f"every parameter is frozen from step {phase.start}",
            where="OptSpec(freeze=...)",
            fix="leave some parameters out, or pass until=",
        )
