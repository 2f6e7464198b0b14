"""Names of leaves: `("encoder", "Dense_0", "kernel")` and `encoder/Dense_0/kernel`.

Tables are keyed by the tuple; the string is for people, selectors and TensorBoard. A key that
itself contains `/` (flax's WeightNorm makes such keys) keeps the string unambiguous by writing
it as `\\/`, and a backslash as two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from flaxtrain.typing import PyTree

__all__ = [
    "Path",
    "flatten",
    "is_none",
    "key_of",
    "keys_of",
    "named_leaves",
    "path_name",
    "unflatten",
]

Path = tuple[str, ...]
"""The keys from the root of a tree to a leaf."""


def key_of(entry: Any) -> str:
    """Returns the plain name of one entry of a jax key path.

    Example:
        >>> [key_of(k) for k, in [p for p, _ in jax.tree_util.tree_leaves_with_path({"a": 1})]]
        ['a']
    """
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the string form of a path, of keys or of jax key entries.

    Example:
        >>> path_name(("encoder", "Dense_0", "kernel"))
        'encoder/Dense_0/kernel'
        >>> path_name(("wn", "Dense_0/kernel"))
        'wn/Dense_0\\\\/kernel'
    """
    keys = (entry if isinstance(entry, str) else key_of(entry) for entry in path)
    return "/".join(key.replace("\\", "\\\\").replace("/", "\\/") for key in keys)


def keys_of(name: str) -> Path:
    r"""Returns the keys of a path's string form; inverse of `path_name`.

    The empty string has one key, which is empty.

    Example:
        >>> keys_of(r"wn/Dense_0\/kernel"), keys_of("head//kernel")
        (('wn', 'Dense_0/kernel'), ('head', '', 'kernel'))
    """
    keys, current = [], ""
    characters = iter(name)
    for character in characters:
        if character == "/":
            keys.append(current)
            current = ""
        else:
            current += next(characters, character) if character == "\\" else character
    return (*keys, current)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns `(name, leaf)` for every leaf of any pytree, in jax's order.

    Example:
        >>> named_leaves({"b": {"x": 1}, "a": 2})
        [('a', 2), ('b/x', 1)]
    """
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def is_none(leaf: Any) -> bool:
    """Whether `leaf` is None; as `is_leaf=`, it makes jax's functions visit None too.

    Example:
        >>> jax.tree.leaves({"a": None, "b": 1}, is_leaf=is_none)
        [None, 1]
    """
    return leaf is None


def flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """Flattens nested mappings to `{path: leaf}`, keeping the mapping's own order.

    Example:
        >>> flatten({"b": {"x": 1}, "a": 2})
        {('b', 'x'): 1, ('a',): 2}
    """
    table: dict[Path, Any] = {}

    def visit(prefix: Path, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                visit((*prefix, key), child)
        else:
            table[prefix] = node

    visit((), tree)
    return table


def unflatten(table: Mapping[Path, Any]) -> dict[str, Any]:
    """Inverse of `flatten`: nested dicts from `{path: leaf}`.

    Example:
        >>> unflatten({("b", "x"): 1, ("a",): 2})
        {'b': {'x': 1}, 'a': 2}
    """
    tree: dict[str, Any] = {}
    for path, leaf in table.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
