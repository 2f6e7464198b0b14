"""Whether a stored tree fits the state that it is to be restored into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax

from flaxtrain.checkpoint.leaves import LeafRecord, describe, mismatch
from flaxtrain.checkpoint.named import leaf_name, named_nodes
from flaxtrain.errors import CheckpointError
from flaxtrain.typing import PyTree

__all__ = ["check_fits", "kept_leaves", "tree_differences"]

_SHOWN = 20


def tree_differences(records: Mapping[str, LeafRecord], like: PyTree) -> list[str]:
    """Returns one line for each leaf that is missing, left over, or of another shape or dtype.

    `None` and empty containers hold nothing, so they never differ.

    Args:
        records: the stored leaves by name, from a manifest.
        like: the tree to compare with, of arrays or `jax.ShapeDtypeStruct`s.

    Example:
        >>> import numpy as np
        >>> stored = {"w": LeafRecord("array", (3,), "float32")}
        >>> for line in tree_differences(stored, {"w": np.zeros(4, np.float32), "b": 0}):
        ...     print(line)
        missing  b: Python int in the state
        shape    w: float32[3] in the checkpoint, float32[4] in the state
    """
    return _differences(records, _leaves(like))


def _leaves(like: PyTree) -> dict[str, Any]:
    return {
        leaf_name(path): leaf
        for path, leaf in named_nodes(like)
        if leaf is not None and not isinstance(leaf, dict)
    }


def _differences(records: Mapping[str, LeafRecord], wanted: Mapping[str, Any]) -> list[str]:
    stored = {name: record for name, record in records.items() if record.is_leaf}
    missing = [
        f"missing  {name}: {describe(leaf, where=name)} in the state"
        for name, leaf in wanted.items()
        if name not in stored
    ]
    extra = [
        f"extra    {name}: {record} in the checkpoint"
        for name, record in stored.items()
        if name not in wanted
    ]
    other = []
    for name in wanted.keys() & stored.keys():
        difference = mismatch(stored[name], wanted[name], where=name)
        if difference is not None:
            word, rest = difference.split(" ", 1)
            other.append(f"{word:8} {name}: {rest}")
    return missing + extra + sorted(other)


def kept_leaves(
    records: Mapping[str, LeafRecord],
    like: PyTree,
    from_like: Collection[str],
    if_present: Collection[str],
) -> dict[str, Any]:
    """Returns the leaves of `like` that a restore leaves as they are, by name.

    Args:
        records: the stored leaves by name, from a manifest.
        like: the state that is restored into. Leaves that are shapes can't be kept.
        from_like: names of leaves, or of what contains them, that are kept.
        if_present: those that are kept unless they are stored.

    Example:
        >>> stored = {"a/x": LeafRecord("number", dtype="int", value="1")}
        >>> kept_leaves(stored, {"a": {"x": 3, "y": 4}, "b": 5}, ["b"], ["a"])
        {'a/y': 4, 'b': 5}
    """
    return {
        name: leaf
        for name, leaf in _leaves(like).items()
        if (_is_in(name, from_like) or (_is_in(name, if_present) and name not in records))
        and not isinstance(leaf, jax.ShapeDtypeStruct)
    }


def _is_in(name: str, parts: Collection[str]) -> bool:
    return any(name == part or name.startswith(f"{part}/") for part in parts)


def check_fits(
    records: Mapping[str, LeafRecord],
    like: PyTree,
    *,
    where: str,
    kept: Collection[str] = (),
    free: Collection[str] = (),
) -> None:
    """Refuses a checkpoint whose leaves differ from those of `like`.

    Args:
        records: the stored leaves by name.
        like: the tree to compare with.
        where: the checkpoint, for the error.
        kept: names of leaves that are not read.
        free: names of leaves, or of what contains them, that may be left over.

    Raises:
        CheckpointError: with the counts and up to 20 of the differences.
    """
    wanted = _leaves(like)
    concerned = {
        name: record
        for name, record in records.items()
        if name not in kept and (name in wanted or not _is_in(name, free))
    }
    required = {name: leaf for name, leaf in wanted.items() if name not in kept}
    lines = _differences(concerned, required)
    if not lines:
        return
    kinds = [line.split()[0] for line in lines]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    shown = lines[:_SHOWN] + (
        [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    )
    raise CheckpointError(
        f"the checkpoint does not fit the state: {counts}\n    " + "\n    ".join(shown),
        where=where,
        fix="build the state with the model and optimizer that the checkpoint was written with",
    )
