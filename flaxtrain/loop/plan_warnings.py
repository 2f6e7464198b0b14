"""What looks wrong in a plan, in sentences. Nothing here is an error: each may be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.loop.courses import course_of
from flaxtrain.loop.plan_parts import range_text, rate_of
from flaxtrain.loop.plan_precision import precision_warnings
from flaxtrain.params import ParamFact, select
from flaxtrain.spec import Assignment, LayerDecay
from flaxtrain.spec.assignment import is_zero
from flaxtrain.text import counted, listed
from flaxtrain.train import Recipe
from flaxtrain.tree import Path

# Nothing here is public: `Plan.warnings` has the sentences.
__all__ = []

_MUCH = 0.01
"""The share of the weights that role `other` may have."""
_IDLE = 0.02
"""The share of the run for which a decay may be over; rounding of durations is within it."""
_LONGER = 1.25
"""How many times the length of the run a schedule may be long."""


def warnings_of(recipe: Recipe, stream: Stream, horizon: Horizon) -> tuple[str, ...]:
    """Returns what looks wrong in a run.

    Args:
        recipe: the recipe of any phase.
        stream: the data.
        horizon: the length of the run.
    """
    total = horizon.updates
    found = [text for check in _CHECKS for text in check(recipe, total)]
    if recipe.padding_problem is not None and stream.may_be_padded:
        found.append(
            f"a batch with fewer rows would be refused: {recipe.padding_problem.found}"
        )
    return tuple(found)


def _trained(assignment: Assignment, total: int | None) -> set[Path]:
    """Returns what is trained at any time in the run."""
    reached = (p for p in assignment.phases if total is None or p.start < total)
    return set().union(*(phase.trained for phase in reached))


def _names(facts: Sequence[ParamFact]) -> str:
    return listed([fact.name for fact in facts])


# About parameters.


def _without_owner(recipe: Recipe, total: int | None) -> Iterator[str]:
    unseen = [fact for fact in recipe.facts.params if not fact.resolved]
    if unseen:
        yield (
            f"no module was seen declaring {_names(unseen)}: decay, groups and layers go by "
            "its path and shape only"
        )


def _much_is_other(recipe: Recipe, total: int | None) -> Iterator[str]:
    other = [fact for fact in recipe.facts.params if fact.role == "other"]
    share = sum(fact.size for fact in other) / max(1, recipe.facts.size)
    if share > _MUCH:
        yield (
            f"role other has {share:.0%} of the weights ({_names(other)}): the default decay "
            "leaves them out; say with decay= or a group what they need"
        )


def _dead_and_trained(recipe: Recipe, total: int | None) -> Iterator[str]:
    trained = _trained(recipe.assignment, total)
    dead = [fact for fact in recipe.facts.params if fact.uses == 0 and fact.path in trained]
    if dead:
        yield (
            f"the loss of training does not depend on {_names(dead)}, and they are trained: "
            "they have slots for nothing, and only decay or noise moves them; freeze them, or "
            "take them out of the model if evaluation does not use them either"
        )


def _nothing_decays(recipe: Recipe, total: int | None) -> Iterator[str]:
    table = recipe.assignment
    trained = _trained(table, total)
    given = [
        group.spec.weight_decay
        for group in table.groups
        if group.paths & trained and not is_zero(group.spec.weight_decay)
    ]
    if given and not any(table.params[path].decays for path in trained):
        yield (
            f"weight_decay={given[0]!r}, and no trained parameter decays; "
            "change decay=, or pass weight_decay=0"
        )


def _unknown_depth(recipe: Recipe, total: int | None) -> Iterator[str]:
    table = recipe.assignment
    rule = table.spec.layer_decay
    layer_of = rule.layer_of if isinstance(rule, LayerDecay) else None
    if rule is None or callable(layer_of):
        return
    said = set[Path]().union(*(select(recipe.facts, choice) for choice in layer_of or ()))
    unknown = [
        recipe.facts[path]
        for path in table.params
        if path in _trained(table, total) - said and recipe.facts[path].depth is None
    ]
    if unknown:
        scales = np.concatenate([np.ravel(table.params[f.path].scale) for f in unknown])
        yield (
            f"layer_decay: the depth of {_names(unknown)} is not known, for no output depends "
            f"on them; their learning rate is multiplied by {range_text(scales)}"
        )


# About learning rates.


def _rates(recipe: Recipe, total: int | None) -> list[tuple[str, Any]]:
    """Returns the different learning rates of what is trained, each with words for it."""
    table = recipe.assignment
    trained = _trained(table, total)
    found: list[tuple[list[str], Any]] = []
    for group in table.groups:
        rate = rate_of(group) if group.paths & trained else None
        if rate is None:
            continue
        shared = next((names for names, other in found if _same(rate, other)), None)
        if shared is None:
            found.append(([repr(group.name)], rate))
        else:
            shared.append(repr(group.name))
    if len(found) == 1:
        return [("the learning rate", found[0][1])]
    return [
        (f"the learning rate of group {' and '.join(names)}", rate) for names, rate in found
    ]


def _same(rate: Any, other: Any) -> bool:
    return rate is other or (type(rate) is type(other) and bool(np.all(rate == other)))


def _rate_is_zero(recipe: Recipe, total: int | None) -> Iterator[str]:
    table = recipe.assignment
    trained = _trained(table, total)
    for group in table.groups:
        rate = rate_of(group)
        if rate is None or not group.paths & trained:
            continue
        if group.lr_mult == 0 or _is_zero(rate, total):
            yield (
                f"the learning rate of group {group.name!r} is 0 in the whole run: nothing in "
                "it changes; freeze= does that without computing gradients"
            )


def _is_zero(rate: Any, total: int | None) -> bool:
    if not callable(rate):
        return float(np.asarray(rate)) == 0
    return total is not None and _stays_zero(rate, total)


def _stays_zero(rate: Any, total: int) -> bool:
    course = course_of(rate, total)
    return course.first == course.last == 0 and (course.peak == 0 or course.peak_at >= total)


def _schedule_and_run(recipe: Recipe, total: int | None) -> Iterator[str]:
    for words, rate in _rates(recipe, total):
        if total is not None and callable(rate):
            yield from _about_schedule(words, rate, total)


def _about_schedule(words: str, rate: Any, total: int) -> Iterator[str]:
    course = course_of(rate, total)
    if course.peak <= 0:
        return
    idle = total - course.rests_from
    if course.first < course.last < course.peak and course.peak_at >= total:
        yield (
            f"{words} still rises when the run ends: its warm-up takes {course.peak_at} "
            f"updates, the run has {total}"
        )
    elif course.fades and idle > max(1, _IDLE * total):
        zero = abs(course.last) <= 1e-6 * course.peak
        then = "0, and nothing changes" if zero else f"{course.last:.3g}"
        yield (
            f"{words} has a schedule shorter than the run: it is over after "
            f"{course.rests_from} of {total} updates; for the other {idle} it is {then}"
        )
    elif (
        course.end is not None
        and course.end > _LONGER * total
        and abs(course.last - course.end_value) > _MUCH * course.peak
    ):
        yield (
            f"{words} has a schedule longer than the run: {course.end} updates, the run has "
            f"{total}; it ends at {course.last:.3g} instead of {course.end_value:.3g}"
        )


# About averages of the weights.


def _average_never_moves(recipe: Recipe, total: int | None) -> Iterator[str]:
    rule = recipe.spec.ema
    if rule is not None and total is not None and rule.first_update > total:
        yield (
            f"{rule!r} would average weights after update {rule.first_update} for the first "
            f"time, and the run has {total}"
        )


# About phases.


def _after_the_end(recipe: Recipe, total: int | None) -> Iterator[str]:
    phases = recipe.assignment.phases
    late = [phase for phase in phases if total is not None and phase.start >= total]
    for phase in late[:1]:
        rest = len(late) - 1
        thawed, frozen = recipe.assignment.changes(phase)
        changes = [
            f"{counted(len(names), 'parameter')} would be {word} ({listed(names)})"
            for word, names in (("trained", thawed), ("frozen", frozen))
            if names
        ]
        yield (
            f"the run ends after {total} updates, before the change at step {phase.start}"
            + (f" from which {' and '.join(changes)}" if changes else "")
            + (f", and {rest} more" if rest else "")
        )


_Check = Callable[[Recipe, int | None], Iterator[str]]

_CHECKS: tuple[_Check, ...] = (
    _without_owner,
    _much_is_other,
    _dead_and_trained,
    _nothing_decays,
    _unknown_depth,
    _rate_is_zero,
    _schedule_and_run,
    precision_warnings,
    _average_never_moves,
    _after_the_end,
)
