"""Two specs side by side: a fingerprint that tells them apart, and what differs in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim import GradientTransformation
from flaxtrain.optim.transform import same_value
from flaxtrain.schedules import Schedule
from flaxtrain.spec.data import encode
from flaxtrain.spec.declaration import Declaration, defaults_of, names_of
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import Group
from flaxtrain.text import kind_of

# Nothing here is public: `OptSpec.fingerprint` and `OptSpec.diff` are.
__all__ = []

DIGITS = 12
"""Hexadecimal digits of a fingerprint: 48 bits, enough for all specs that anyone compares."""


def fingerprint(spec: Declaration) -> str:
    """Returns a short text that depends on all that a spec says, and on nothing else.

    Raises:
        ArgumentTypeError: a part of the spec is code, which can't be data; it is named.

    Example:
        >>> from flaxtrain.spec import OptSpec
        >>> fingerprint(OptSpec("sgd", 0.1, momentum=0.9))
        '92c341852758'
    """
    given, defaults = spec.arguments(), defaults_of(type(spec))
    # What is left at its default says nothing, also where a later version adds a field.
    table = {
        name: value
        for name, value in encode(spec).items()
        if name in given or name not in defaults or name == "hyperparameters"
    }
    text = json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differences(a: Declaration, b: Declaration) -> tuple[str, ...]:
    """Returns what differs between two specs, one line for each field.

    Groups are matched by name and freezes by what they select; schedules and optimizer objects
    of one kind are compared argument by argument.

    Args:
        a: the one spec.
        b: the other one.

    Returns:
        Lines such as `weight_decay: 0.1 -> 0.2`; none where the specs are equal.

    Raises:
        ArgumentTypeError: `b` is of another type.

    Example:
        >>> from flaxtrain.spec import Group, OptSpec
        >>> a = OptSpec("adamw", 0.1, groups=[Group("head/**", lr_mult=10.0)])
        >>> b = a.replace(b2=0.95, groups=[Group("head/**", lr_mult=5.0), Group("#bias")])
        >>> for line in differences(a, b):
        ...     print(line)
        groups['head'].lr_mult: 10.0 -> 5.0
        groups: 'bias' added
        b2: not given -> 0.95
    """
    if type(b) is not type(a):
        raise ArgumentTypeError(
            f"{b!r} is {kind_of(b)}, not {kind_of(a)}",
            where=f"{type(a).__name__}.diff",
            fix=f"pass {kind_of(a)}",
        )
    return tuple(_declarations("", a, b))


def _declarations(place: str, a: Declaration, b: Declaration) -> Iterator[str]:
    for name in names_of(type(a)):
        one, two = getattr(a, name), getattr(b, name)
        if name == "hyperparameters":
            yield from _tables(place, dict(one), dict(two))
        elif name == "groups":
            yield from _rows(f"{place}{name}", _by_label(one), _by_label(two))
        elif name == "clip":
            yield from _rows(f"{place}{name}", _by_kind(one), _by_kind(two))
        elif name == "freeze":
            yield from _rows(f"{place}{name}", _by_choice(one), _by_choice(two))
        elif name == "layer_of" and isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from _tables(f"{place}{name}", one, two, "[{!r}]".format)
            yield from _order(f"{place}{name}", one, two)
        else:
            yield from _values(f"{place}{name}", one, two)


def _values(place: str, a: Any, b: Any) -> Iterator[str]:
    """Yields what differs in one value: inside it, where both are of one kind."""
    if same_value(a, b):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        yield from _tables(place, a, b, "[{!r}]".format)
    elif isinstance(a, Declaration) and type(a) is type(b):
        yield from _declarations(f"{place}.", a, b)
    elif (parts := _parts_of_both(a, b)) is not None:
        yield from _tables(f"{place}.", *parts)
    else:
        yield f"{place}: {_shown(a)} -> {_shown(b)}"


def _parts_of_both(a: Any, b: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns the arguments of two values of one kind, where they tell them apart."""
    if isinstance(a, Schedule) and type(a) is type(b):
        one, two = dict(vars(a)), dict(vars(b))
    elif isinstance(a, GradientTransformation) and isinstance(b, GradientTransformation):
        if a.name is None or a.name != b.name:
            return None
        one, two = dict(a.arguments), dict(b.arguments)
    else:
        return None
    return None if same_value(one, two) else (one, two)


def _tables(
    place: str, a: Mapping[str, Any], b: Mapping[str, Any], key: Callable[[str], str] = str
) -> Iterator[str]:
    for name in dict.fromkeys((*a, *b)):
        where = f"{place}{key(name)}"
        if name not in a:
            yield f"{where}: not given -> {_shown(b[name])}"
        elif name not in b:
            yield f"{where}: {_shown(a[name])} -> not given"
        else:
            yield from _values(where, a[name], b[name])


def _rows(
    place: str, a: Mapping[str, Declaration], b: Mapping[str, Declaration]
) -> Iterator[str]:
    for label in dict.fromkeys((*a, *b)):
        if label not in b:
            yield f"{place}: {label!r} removed"
        elif label not in a:
            yield f"{place}: {label!r} added"
        else:
            yield from _declarations(f"{place}[{label!r}].", a[label], b[label])
    yield from _order(place, a, b)


def _order(place: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yields a change of order: the first group or layer that selects a parameter has it."""
    one, two = ([label for label in x if label in y] for x, y in ((a, b), (b, a)))
    if one != two:
        yield f"{place}: order {', '.join(one)} -> {', '.join(two)}"


def _by_label(groups: Sequence[Group]) -> dict[str, Declaration]:
    return {group.label(index): group for index, group in enumerate(groups)}


def _by_kind(clips: Sequence[Declaration]) -> dict[str, Declaration]:
    return {type(clip).__name__: clip for clip in clips}


def _by_choice(rules: Sequence[Freeze]) -> dict[str, Declaration]:
    """Returns the rules by what they select, with a number where that repeats."""
    table: dict[str, Declaration] = {}
    for rule in rules:
        label = rule.select if isinstance(rule.select, str) else _shown(rule.select)
        count = sum(key == label or key.startswith(f"{label} #") for key in table)
        table[f"{label} #{count + 1}" if count else label] = rule
    return table


def _shown(value: Any) -> str:
    """Returns a value as text; a function by its name, without its address."""
    name = getattr(value, "__qualname__", None)
    return f"<function {name}>" if callable(value) and isinstance(name, str) else repr(value)
