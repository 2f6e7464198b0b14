"""Trees of variables as tables: one path per array, the collection first.

A source may be what `init` returned, params alone, a training state (as an object, or as the
nested dicts that were stored), or a state whose field `params` holds all variables.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxtrain.errors import ParameterError
from flaxtrain.params.axes import array_in, is_box
from flaxtrain.params.path_patterns import shown_name
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, key_of
from flaxtrain.typing import PyTree

# Nothing here is public: `apply_restore` is.
__all__ = []

# A tree with params and one of these is a training state, flax's or ours.
_OF_A_STATE = frozenset({"step", "opt_state"})


@dataclass(frozen=True)
class Variables:
    """The variables that are to be filled: their arrays by path, and how to put them back.

    `table` is in the order of jax's flattening. `boxes` are the leaves as they are: a metadata
    box of flax counts as the array in it.
    """

    table: dict[Path, Any]
    boxes: list[Any]
    structure: Any

    @classmethod
    def of(cls, tree: PyTree) -> Variables:
        """Reads variables, or params alone."""
        entries, structure = _flattened(tree, "the variables")
        table = _by_path(entries)
        if not any(path[0] == "params" and len(path) > 1 for path in table):
            table = {("params", *path): leaf for path, leaf in table.items()}
        for path, leaf in table.items():
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                raise ParameterError(
                    f"the variables hold {kind_of(leaf)}, not an array",
                    where=shown_name(path),
                    fix="pass what `model.init` returned",
                )
        return cls(table, [leaf for _, leaf in entries], structure)

    def filled(self, values: dict[Path, Any]) -> PyTree:
        """Returns the tree with these arrays, and with its own for all other paths."""
        leaves = [
            jax.tree.map(lambda _, value=values[path]: value, leaf) if path in values else leaf
            for path, leaf in zip(self.table, self.boxes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def collections(self) -> frozenset[str]:
        """The names of the collections, `params` among them."""
        return frozenset(path[0] for path in self.table) | {"params"}

    @property
    def modules(self) -> frozenset[str]:
        """The first keys below `params`."""
        return frozenset(path[1] for path in self.table if path[0] == "params")


def source_table(tree: PyTree, target: Variables) -> tuple[dict[Path, Any], tuple[str, ...]]:
    """Returns the arrays of a source by path, and what of a training state was left aside.

    Raises:
        ParameterError: something that belongs to the variables is not an array.
    """
    entries, _ = _flattened(tree, "the source")
    table = _unwrapped(_by_path(entries), target)
    tops = {path[0] for path in table}
    ignored: set[str] = set()
    if "params" in tops and tops & _OF_A_STATE:
        table, ignored = _variables_of_state(table, target.collections)
    return {path: _array(path, leaf) for path, leaf in table.items()}, tuple(sorted(ignored))


def _flattened(tree: PyTree, what: str) -> tuple[list[tuple[Any, Any]], Any]:
    try:
        entries, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    except ValueError:
        found = f"{what} can't be read: a dict has keys of several types"
        raise ParameterError(found, fix="pass nested dicts with string keys") from None
    if len(entries) == 1 and entries[0][0] == ():
        found = f"{kind_of(tree)} was passed for {what}, not a tree"
        raise ParameterError(found, fix="pass nested dicts of arrays")
    return entries, structure


def _by_path(entries: Collection[tuple[Any, Any]]) -> dict[Path, Any]:
    return {
        tuple(map(key_of, path)): array_in(leaf) if is_box(leaf) else leaf
        for path, leaf in entries
    }


def _unwrapped(table: dict[Path, Any], target: Variables) -> dict[Path, Any]:
    """Puts every path below its collection, whatever level the source begins at."""
    levels = {path[0] for path in table if len(path) > 1}
    only_collections = bool(levels) and levels <= target.collections - target.modules
    if "params" not in levels and not only_collections:
        return {("params", *path): leaf for path, leaf in table.items()}
    # TrainState.create(params=variables): {"params": {"params": ..., "batch_stats": ...}}
    nested = any(path[:2] == ("params", "params") and len(path) > 2 for path in table)
    if nested and "params" not in target.modules:
        return {path[1:] if path[0] == "params" else path: leaf for path, leaf in table.items()}
    return table


def _variables_of_state(
    table: dict[Path, Any], collections: Collection[str]
) -> tuple[dict[Path, Any], set[str]]:
    """Keeps what the model reads; states of ours have their collections under that name."""
    lifted: dict[Path, Any] = {
        path[1:] if path[0] == "collections" and len(path) > 2 else path: leaf
        for path, leaf in table.items()
    }
    ours = {path[1] for path in table if path[0] == "collections" and len(path) > 2}
    wanted = {"params", "batch_stats", *collections, *ours}
    kept = {path: leaf for path, leaf in lifted.items() if path[0] in wanted}
    return kept, {path[0] for path in lifted if path[0] not in wanted}


def _array(path: Path, leaf: Any) -> Any:
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return leaf
    if isinstance(leaf, (np.generic, bool, int, float, complex)):
        return np.asarray(leaf)
    raise ParameterError(
        f"the source holds {kind_of(leaf)}, not an array",
        where=shown_name(path),
        fix="pass a tree of arrays as the source",
    )
