"""A choice for each parameter: a mask, labels, factors.

All of them are given in the same ways, and this file is the one place that knows them:

- a tree like the parameters, or a prefix of it;
- nested dicts without, or with, the level `params` that the parameters have, or lack;
- a mapping from patterns (`"encoder/Dense_0"`, `"*/bias"`) to choices; the first that matches
  decides;
- a function from the parameters to one of these. One that can't do with arrays, or does not
  look at them, is given the names instead (see `names_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any, TypeVar

import jax

from flaxtrain.errors import FlaxtrainError, ParameterError
from flaxtrain.optim.names import (
    ParamName,
    levels_above,
    matches,
    names_of,
    no_match,
)
from flaxtrain.optim.transform import same_value
from flaxtrain.tree import Path, key_of
from flaxtrain.typing import PyTree

# For modules that take a choice; to users, what takes one says what it accepts.
__all__ = ["asked", "chooser", "is_constant", "named_choices", "some", "uncovered"]

T = TypeVar("T")


def chooser(
    choice: Any,
    *,
    what: str,
    check: Callable[[PyTree], PyTree] = lambda tree: tree,
    default: Any = None,
) -> Callable[[PyTree], PyTree]:
    """Returns the function from parameters to the choice for each of them.

    Args:
        choice: given in one of the ways above.
        what: what is chosen, for messages: "mask", "labels".
        check: called with every tree of choices; returns it, or raises.
        default: the choice for parameters that `choice` does not cover; None: there is none.

    Returns:
        A function whose result is a prefix of the tree it was given.
    """
    # A module of choices may define __call__ and is a tree all the same, so leaves are asked.
    if callable(choice) and all(map(callable, jax.tree.leaves(choice))):
        return lambda tree: fitted(check(answer(choice, tree)), tree, what, default)
    checked = check(choice)
    return lambda tree: fitted(checked, tree, what, default)


def answer(function: Callable[[PyTree], Any], tree: PyTree) -> Any:
    """Returns what a function of parameters says, or what it says about their names."""
    arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
    return asked(
        lambda: function(tree),
        lambda: function(names_of(tree)),
        # `"bias" in x` fails for jax arrays, and is False for those of numpy.
        lambda found: is_constant(found) and (not arrays or _has_text(function)),
    )


def asked(
    about_values: Callable[[], T],
    about_names: Callable[[], T],
    may_say_more: Callable[[T], bool],
) -> T:
    """Returns the first answer, or the second where the first fails or says nothing.

    Args:
        about_values: asks a user's function about arrays, or facts.
        about_names: asks it about names.
        may_say_more: whether names are worth asking about, given the first answer.

    Raises:
        Exception: what `about_values` raised, with a note, if `about_names` raises as well.
    """
    try:
        found = about_values()
    except (jax.errors.JAXTypeError, FlaxtrainError):
        raise  # it does look at values, which are not known yet; or it knows what is wrong
    except Exception as error:
        try:
            return about_names()
        except Exception as other:
            error.add_note(
                "It was asked about the names of the parameters too, and raised "
                f"{type(other).__name__}: {other}"
            )
        raise
    if not may_say_more(found):
        return found
    try:
        named = about_names()
    except Exception:
        return found
    return found if is_constant(named) else named


def is_constant(tree: Any) -> bool:
    """Whether all leaves are the same: it may be that nothing was looked at."""
    leaves = jax.tree.leaves(tree)
    return all(same_value(leaf, leaves[0]) for leaf in leaves)


def _has_text(function: Any) -> bool:
    """Whether there is text in the code of a function; where there is no code, it may be."""
    code = getattr(function, "__code__", None)
    return code is None or any(
        isinstance(value, str) and value != function.__doc__
        for value in _constants(code.co_consts)
    )


def _constants(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, CodeType):
            yield from _constants(value.co_consts)
        elif isinstance(value, (tuple, frozenset)):
            yield from _constants(value)
        else:
            yield value


def fitted(choice: Any, tree: PyTree, what: str, default: Any = None) -> PyTree:
    """Returns `choice` as a prefix of `tree`: itself if it is one, else made by path.

    Raises:
        ParameterError: a part of the choice is about no parameter, or a parameter has none.

    Example:
        >>> tree = {"params": {"encoder": {"kernel": 1.0, "bias": 2.0}, "head": 3.0}}
        >>> fitted({"*/bias": "slow"}, tree, "labels", default="fast")
        {'params': {'encoder': {'bias': 'slow', 'kernel': 'fast'}, 'head': 'fast'}}
    """
    if _is_prefix(choice, tree):
        return choice
    if not jax.tree.leaves(tree):  # nothing to choose for: an empty tree, or a stand-in
        return tree
    entries = _without_params(list(_entries(choice)))
    skipped = levels_above(tree)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_hole)
    names = [ParamName(tuple(map(key_of, keys[skipped:]))) for keys, _ in paths]
    values = [_first(entries, name, default) for name in names]
    there = [not _is_hole(node) for _, node in paths]
    if all(there):  # what a hole holds is not known, so no entry is wrong about it
        for path, _ in entries:
            if not any(_covers(path, name) for name in names):
                raise no_match(what, "/".join(path), names)
    missing = [str(n) for n, v, is_there in zip(names, values, there) if is_there and v is None]
    if missing:
        raise ParameterError(
            f"the {what} does not fit the tree: nothing is said about {len(missing)} of "
            f"{len(names)} parameters: {some(missing)}",
            fix=f"pass a {what} of the structure of the parameters, a prefix of it, or "
            "patterns such as '*/bias' that cover all of them"
            + ("" if what == "mask" else "; or pass default="),
        )
    chosen = [node if v is None else v for v, (_, node) in zip(values, paths)]
    return jax.tree.unflatten(structure, chosen)


def some(names: list[str], count: int = 5) -> str:
    """Returns the first names, and dots where there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _is_prefix(choice: Any, tree: PyTree) -> bool:
    try:
        jax.tree.structure(choice).flatten_up_to(tree)
    except (TypeError, ValueError):
        return False
    return True


def _is_hole(node: Any) -> bool:
    return not jax.tree.leaves(node)


def _entries(choice: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields path and value of a choice, mappings in their own order."""
    if isinstance(choice, Mapping):
        for key, child in choice.items():
            yield from _entries(child, (*above, str(key)))
    elif choice is not None:
        for keys, value in jax.tree_util.tree_leaves_with_path(choice):
            yield (*above, *map(key_of, keys)), value


def _without_params(entries: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    if all(path[:1] == ("params",) for path, _ in entries):
        return [(path[1:], value) for path, value in entries]
    return entries


def _covers(path: Path, name: ParamName) -> bool:
    return name.path[: len(path)] == path or matches("/".join(path), name)


def _first(entries: list[tuple[Path, Any]], name: ParamName, default: Any) -> Any:
    return next((value for path, value in entries if _covers(path, name)), default)


def uncovered(mask: PyTree, tree: PyTree) -> list[str]:
    """Returns the names of the parameters for which a mask, a prefix of the tree, is False."""
    names = jax.tree.map(
        lambda chosen, below: [] if chosen else jax.tree.leaves(below), mask, names_of(tree)
    )
    return [str(name) for name in jax.tree.leaves(names)]


def named_choices(choice: PyTree) -> list[tuple[ParamName, Any]]:
    """Returns name and value of every leaf of a tree of choices."""
    skipped = levels_above(choice)
    return [
        (ParamName(tuple(map(key_of, keys[skipped:]))), value)
        for keys, value in jax.tree_util.tree_leaves_with_path(choice)
    ]
