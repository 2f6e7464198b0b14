"""Finding and replacing values in a tree by name: of a dict's key, a field, a named tuple.

A path to a value is one of jax's, except that fields of named tuples are `NamedTupleKey`s,
which also tell the tuple's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
from jax.tree_util import DictKey, keystr

from flaxtrain.errors import UnknownParameterError
from flaxtrain.typing import PyTree

__all__ = ["Filter", "NamedTupleKey", "get", "get_all_with_path", "set"]

KeyPath: TypeAlias = tuple[Any, ...]

Filter: TypeAlias = Callable[[KeyPath, Any], bool]
"""`filtering(path, value)`: whether a value of the right name is meant."""


@dataclass(frozen=True)
class NamedTupleKey:
    """An entry of a path: the field of a named tuple.

    Attributes:
        tuple_name: the name of the tuple's class.
        name: the field.

    Example:
        >>> print(NamedTupleKey("ScaleByAdamState", "count"))
        ScaleByAdamState.count
    """

    tuple_name: str
    name: str

    def __str__(self) -> str:
        return f"{self.tuple_name}.{self.name}"


def get_all_with_path(
    tree: PyTree, key: Any, filtering: Filter | None = None
) -> list[tuple[KeyPath, Any]]:
    """Returns `(path, value)` for every value of that name, outer ones first.

    Args:
        tree: any pytree.
        key: a key of dicts, a field of named tuples, or the name of a named tuple's class,
            which stands for the whole tuple.
        filtering: keep only values for which `filtering(path, value)` is true.

    Example:
        >>> found = get_all_with_path({"a": {"w": 1}, "b": [{"w": 2}]}, "w")
        >>> [(keystr(path), value) for path, value in found]
        [("['a']['w']", 1), ("['b'][0]['w']", 2)]
    """
    found = _values((), tree, key)
    return [pair for pair in found if filtering is None or filtering(*pair)]


def get(tree: PyTree, key: Any, default: Any = None, filtering: Filter | None = None) -> Any:
    """Returns the one value of that name, or `default` if there is none.

    Args:
        tree: any pytree.
        key: a key of dicts, a field of named tuples, or the name of a named tuple's class.
        default: what is returned if nothing is found.
        filtering: consider only values for which `filtering(path, value)` is true.

    Raises:
        UnknownParameterError: (a `KeyError`) there are several; their paths are named.

    Example:
        >>> get({"a": {"w": 1}, "b": {"v": 2}}, "v"), get({}, "v", default=0)
        (2, 0)
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        paths = ", ".join(keystr(path) or "the root" for path, _ in found)
        raise UnknownParameterError(
            f"{len(found)} values are named {key!r}",
            where=paths,
            fix="pass filtering=lambda path, value: ... that is true for one of them, "
            "or use get_all_with_path",
        )
    return found[0][1] if found else default


def set(tree: PyTree, filtering: Filter | None = None, /, **kwargs: Any) -> PyTree:
    """Returns a copy of the tree with all values of the given names replaced.

    Args:
        tree: any pytree.
        filtering: replace only values for which `filtering(path, value)` is true.
        **kwargs: a name, as for `get`, and the new value.

    Raises:
        UnknownParameterError: (a `KeyError`) nothing of a name is found, or nothing that the
            filter lets pass.

    Example:
        >>> set({"a": {"w": 1}, "b": {"w": 2}}, lambda path, value: value > 1, w=7)
        {'a': {'w': 1}, 'b': {'w': 7}}
    """
    for key in kwargs:
        if not get_all_with_path(tree, key, filtering):
            others = get_all_with_path(tree, key)
            raise UnknownParameterError(
                f"no value is named {key!r}"
                if not others
                else f"the filter passes none of the values named {key!r}",
                where="tree.set",
                fix=f"values of that name: {[keystr(path) for path, _ in others]}"
                if others
                else "names are keys of dicts, fields and names of named tuples",
            )
    return _replaced((), tree, filtering or (lambda path, value: True), kwargs)


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _names(node: Any) -> dict[Any, Any]:
    """Returns the values in a node that have a name, by name, the node's own included."""
    if isinstance(node, dict):
        return dict(node)
    if _is_named_tuple(node):
        return {**node._asdict(), type(node).__name__: node}
    return {}


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """Returns the children with their path entries, and how to put them together again."""
    if isinstance(node, dict):  # in the dict's own order; also of kinds that jax does not know
        return [(DictKey(name), child) for name, child in node.items()], partial(
            _refilled, node
        )
    pairs, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    if any(not path for path, _ in pairs):  # a leaf has no children
        return [], lambda children: node
    if _is_named_tuple(node):
        name = type(node).__name__
        entries = [NamedTupleKey(name, field) for field in node._fields]
    else:
        entries = [path[0] for path, _ in pairs]
    children = [(entry, child) for entry, (_, child) in zip(entries, pairs, strict=True)]
    return children, partial(jax.tree.unflatten, structure)


def _refilled(node: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Returns a dict of the same kind with other values."""
    result = copy(node)
    result.update(zip(node, values, strict=True))
    return result


def _values(path: KeyPath, node: Any, key: Any) -> list[tuple[KeyPath, Any]]:
    """Returns what is named `key`: of the outermost nodes that have it, then further inside."""
    holders = list(_holders(path, node, key))
    found = []
    for where, holder in holders:
        if _is_named_tuple(holder) and type(holder).__name__ == key:
            found.append((where, holder))
        elif _is_named_tuple(holder):
            entry = NamedTupleKey(type(holder).__name__, key)
            found.append(((*where, entry), getattr(holder, key)))
        else:
            found.append(((*where, DictKey(key)), holder[key]))
    for where, holder in holders:
        for entry, child in _children(holder)[0]:
            found += _values((*where, entry), child, key)
    return found


def _holders(path: KeyPath, node: Any, key: Any) -> Iterator[tuple[KeyPath, Any]]:
    if key in _names(node):
        yield path, node
        return
    children = _children(node)[0]
    if isinstance(node, dict):  # as jax orders the leaves of a tree
        children = sorted(children, key=lambda pair: pair[0].key)
    for entry, child in children:
        yield from _holders((*path, entry), child, key)


def _replaced(path: KeyPath, node: Any, wanted: Filter, new: dict[str, Any]) -> Any:
    if _is_named_tuple(node) and type(node).__name__ in new and wanted(path, node):
        return new[type(node).__name__]
    children, rebuild = _children(node)
    if not children:
        return node
    names = _names(node)
    result = []
    for entry, child in children:
        inside = (*path, entry)
        name = entry.name if isinstance(entry, NamedTupleKey) else getattr(entry, "key", None)
        if name in new and name in names and wanted(inside, child):
            result.append(new[name])
        else:
            result.append(_replaced(inside, child, wanted, new))
    return rebuild(result)
