"""Splitting a tree of parameters by path and putting it together again.

A part is a nested dict without the leaves (and without the empty dicts) of the other part: no
sentinel nodes, so a pruned tree has exactly the leaves it names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flaxtrain.tree.paths import Path, flatten, unflatten

__all__ = ["graft", "split"]


def split(
    tree: Mapping[str, Any], chosen: Collection[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits nested dicts into the leaves whose path is in `chosen`, and the rest.

    Example:
        >>> split({"a": 1, "b": {"c": 2, "d": 3}}, {("b", "c")})
        ({'b': {'c': 2}}, {'a': 1, 'b': {'d': 3}})
    """
    table = flatten(tree)
    part = {path: leaf for path, leaf in table.items() if path in chosen}
    rest = {path: leaf for path, leaf in table.items() if path not in chosen}
    return unflatten(part), unflatten(rest)


def graft(part: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`; where both have a leaf, the one of `part` is taken.

    Example:
        >>> graft({"b": {"c": 2}}, {"a": 1, "b": {"d": 3}})
        {'a': 1, 'b': {'d': 3, 'c': 2}}
    """
    return unflatten(flatten(rest) | flatten(part))
