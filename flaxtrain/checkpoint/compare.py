"""Whether a stored tree fits the state that it is to be restored into."""

from __future__ import annotations

from collections.abc import Mapping

from flaxtrain.checkpoint.leaves import LeafRecord, describe, mismatch
from flaxtrain.checkpoint.named import leaf_name, named_nodes
from flaxtrain.errors import CheckpointError
from flaxtrain.typing import PyTree

__all__ = ["check_fits", "tree_differences"]

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
    wanted = {
        leaf_name(path): leaf
        for path, leaf in named_nodes(like)
        if leaf is not None and not isinstance(leaf, dict)
    }
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


def check_fits(records: Mapping[str, LeafRecord], like: PyTree, *, where: str) -> None:
    """Refuses a checkpoint whose leaves differ from those of `like`.

    Raises:
        CheckpointError: with the counts and up to 20 of the differences.
    """
    lines = tree_differences(records, like)
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
