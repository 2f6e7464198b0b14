"""What rules and the names of axes say about parameters: tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flaxtrain.errors import (
    ArgumentError,
    ParameterError,
    UnknownNameError,
    nearest,
    unknown_name,
)
from flaxtrain.parallel.layout.splits import AxisSplits, shards, unsplit
from flaxtrain.parallel.mesh import BATCH_AXES, AnyMesh
from flaxtrain.parallel.sharding import AxisNames, Sharding, each
from flaxtrain.params import Facts, ParamFact, select
from flaxtrain.text import counted
from flaxtrain.tree import Path

# Nothing here is public: `Layout` is.
__all__ = []


class Chosen(NamedTuple):
    """A rule: what each axis is split over, `()` for an array left whole, and for messages."""

    axes: tuple[AxisNames, ...]
    where: str


def rules_by_path(sharding: Sharding, facts: Facts) -> dict[Path, Chosen]:
    """Returns the rule of each parameter that one selects, the first.

    Raises:
        ParameterError: a rule selects nothing.
    """
    found: dict[Path, Chosen] = {}
    for choice, axes in sharding.rules:
        where = f"Sharding(rules=...): {choice!r}"
        for path in select(facts, choice, where=where):
            found.setdefault(path, Chosen(axes, where))
    return found


def by_rule(mesh: AnyMesh, fact: ParamFact, chosen: Chosen) -> AxisSplits:
    """Returns what a rule splits of one parameter.

    Raises:
        ParameterError: it does not fit the parameter.
        UnknownNameError: the mesh has no such axis.
    """
    if not chosen.axes:
        return unsplit(fact.shape)
    where = f"{chosen.where}, parameter {fact.name!r}"
    return _checked(mesh, fact, list(map(each, chosen.axes)), where)


def by_names(mesh: AnyMesh, sharding: Sharding, fact: ParamFact) -> AxisSplits:
    """Returns what the names in `nn.with_partitioning` split, for one parameter.

    Raises:
        UnknownNameError: a name means nothing, or the mesh has no such axis.
        ParameterError: the names do not fit the parameter.
    """
    if fact.partitioning is None:
        return unsplit(fact.shape)
    where = f"nn.with_partitioning({fact.partitioning}), parameter {fact.name!r}"
    entries = [_meant(mesh, sharding, entry, where) for entry in fact.partitioning]
    return _checked(mesh, fact, entries, where)


def _meant(mesh: AnyMesh, sharding: Sharding, entry: Any, where: str) -> tuple[str, ...]:
    """Returns the mesh axes that the name of an axis means, or a tuple of names."""
    meanings = dict(sharding.logical)
    found: list[str] = []
    for name in each(tuple(entry) if isinstance(entry, list) else entry):
        if name in meanings:
            found += each(meanings[name])
        elif name in mesh.shape:
            found.append(name)
        elif any(size > 1 for axis, size in mesh.shape.items() if axis not in BATCH_AXES):
            close = nearest(name, [*meanings, *mesh.shape])
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownNameError(
                f"the axis name {name!r} means nothing",
                where=where,
                fix=f"{hint}say what it is split over in Sharding(logical=...), as ({name!r}, "
                f"None) or with one of {', '.join(map(repr, mesh.shape))}",
            )
    return tuple(found)


def _checked(
    mesh: AnyMesh, fact: ParamFact, entries: Sequence[tuple[str, ...]], where: str
) -> AxisSplits:
    """Returns what each axis of a parameter is split over, if that can be."""
    if len(entries) != len(fact.shape):
        raise ParameterError(
            f"{counted(len(entries), 'axis', 'axes')} for the shape {fact.shape}",
            where=where,
            fix=f"name {counted(len(fact.shape), 'axis', 'axes')}, None for one that is not "
            "split; nn.scan and nn.vmap add one, which they name if metadata_params has "
            "nn.PARTITION_NAME",
        )
    seen: set[str] = set()
    for axis, names in enumerate(entries):
        for name in names:
            if name not in mesh.shape:
                raise unknown_name("mesh axis", name, mesh.shape, where=where)
            if name in seen:
                raise ArgumentError(
                    f"the mesh axis {name!r} stands for two axes of the shape {fact.shape}",
                    where=where,
                    fix="split one of them over it, and none or another axis for the other",
                )
            seen.add(name)
        count = shards(mesh, names)
        if fact.shape[axis] % count:
            raise ParameterError(
                f"{count} does not divide axis {axis} of the shape {fact.shape}, which is "
                f"{fact.shape[axis]} long",
                where=where,
                fix=f"choose a length of {' x '.join(map(repr, names))} that divides "
                f"{fact.shape[axis]}, another axis, or None",
            )
    return tuple(entries)
