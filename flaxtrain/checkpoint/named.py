"""Trees by name: any pytree of state as nested dicts with string keys, and back.

Entries of a dict, fields of a dataclass or NamedTuple and positions in a tuple all become keys:
a stored optimizer state reads `opt_state/slots/mu/Dense_0/kernel`. Static fields (functions)
are no part of it: they come from the tree that the names are put back into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from flaxtrain.errors import CheckpointError
from flaxtrain.tree import Path, flatten, key_of, keys_of, path_name
from flaxtrain.typing import PyTree

__all__ = ["from_named", "leaf_name", "name_keys", "named_nodes", "to_named"]


def to_named(tree: PyTree) -> Any:
    """Returns the tree as nested dicts, keyed by field name, key or position.

    Args:
        tree: any pytree; its leaves are kept as they are.

    Returns:
        Nested dicts with string keys. `None` stays `None`, any other empty container becomes
        `{}`, and a tree that is a single leaf stays that leaf.

    Raises:
        CheckpointError: two children of one node have the same text, such as `1` and `"1"`.

    Example:
        >>> from flaxtrain.optim.transform import EmptyState
        >>> to_named({"opt": (EmptyState(), {"mu": 1.5}), "ema": None})
        {'ema': None, 'opt': {'0': {}, '1': {'mu': 1.5}}}
    """
    root: dict[str, Any] = {}
    for path, node in named_nodes(tree):
        if not path:
            return node
        parent = root
        for key in path[:-1]:
            parent = parent.setdefault(key, {})
        parent[path[-1]] = node
    return root


def from_named(named: Any, like: PyTree) -> PyTree:
    """Puts named leaves back into the structure of `like`; inverse of `to_named`.

    Args:
        named: nested dicts as `to_named` makes them.
        like: a pytree whose leaves have the same names; the leaves' values don't matter.

    Returns:
        A tree of `like`'s structure and static fields, with the leaves of `named`.

    Raises:
        CheckpointError: names are missing or left over; all of them are listed.

    Example:
        >>> from_named({"0": 3, "1": {"mu": 4}}, like=(1, {"mu": 2}))
        (3, {'mu': 4})
    """
    entries, structure = jax.tree_util.tree_flatten_with_path(like)
    paths = [tuple(map(key_of, path)) for path, _ in entries]
    table = flatten(named) if isinstance(named, Mapping) else {(): named}
    given = {path: leaf for path, leaf in table.items() if leaf is not None}
    missing = [path_name(path) for path in paths if path not in given]
    left_over = [path_name(path) for path in given.keys() - set(paths)]
    if missing or left_over:
        raise CheckpointError(
            f"the names don't fit the tree: missing {missing}, left over {sorted(left_over)}",
            where="from_named(named, like)",
            fix="pass a `like` of the structure that to_named was given",
        )
    return jax.tree.unflatten(structure, [given[path] for path in paths])


def named_nodes(tree: PyTree) -> Iterator[tuple[Path, Any]]:
    """Yields `(path, node)` for every leaf and `None`, and `{}` for other empty containers.

    Example:
        >>> list(named_nodes([7, (), None]))
        [(('0',), 7), (('1',), {}), (('2',), None)]
    """
    yield from _walk((), tree)


def _walk(path: Path, node: Any) -> Iterator[tuple[Path, Any]]:
    # Stopping at everything but the node itself flattens one level, for any registered class.
    children = jax.tree_util.tree_leaves_with_path(
        node, is_leaf=lambda child: child is not node
    )
    if not children:
        yield path, None if node is None else {}
    elif children[0][0] == ():
        yield path, node
    else:
        keys = [key_of(entry[0]) for entry, _ in children]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(
                f"two children are both named {twice!r}",
                where=path_name(path) or "the top of the tree",
                fix="use keys whose text differs",
            )
        for key, (_, child) in zip(keys, children):
            yield from _walk((*path, key), child)


def leaf_name(path: Path) -> str:
    r"""Returns the name of a leaf, one name for each path; a lone `\` for the top of the tree.

    Example:
        >>> leaf_name(("params", "kernel")), leaf_name(())
        ('params/kernel', '\\')
    """
    return path_name(path) if path else "\\"


def name_keys(name: str) -> Path:
    r"""Returns the keys of a leaf's name; inverse of `leaf_name`.

    Example:
        >>> name_keys(r"wn/Dense_0\/kernel")
        ('wn', 'Dense_0/kernel')
    """
    return () if name == "\\" else keys_of(name)
