"""A choice for each parameter: a mask, labels, factors.

All of them are given in the same ways, and this file is the one place that knows them:

- a tree like the parameters, or a prefix of it;
- nested dicts without, or with, the level `params` that the parameters have, or lack;
- a mapping from patterns (`"encoder/Dense_0"`, `"*/bias"`) to choices; the first that matches
  decides;
- a function from the parameters to one of these, or from one name to its choice.

A function is asked about the tree of arrays first. Where it fails, or says the same of all, it
is asked about the tree of names too (see `names_of`); and where it still fails, or gives one
answer for the whole tree, about one name after another: `"bias" not in x` is true of a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from flaxtrain.errors import FlaxtrainError, ParameterError
from flaxtrain.optim.names import (
    ParamName,
    found_by,
    levels_above,
    names_of,
    no_match,
    without_params,
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
        return lambda tree: fitted(check(answer(choice, tree, check)), tree, what, default)
    checked = check(_sortable(choice))
    return lambda tree: fitted(checked, tree, what, default)


def answer(
    function: Callable[[Any], Any], tree: PyTree, check: Callable[[PyTree], PyTree]
) -> PyTree:
    """Returns what a function says about parameters, about their names, or about each name.

    Args:
        function: of parameters, of a tree of names, or of one name.
        tree: the parameters.
        check: raises where an answer can't be a tree of choices.

    Raises:
        Exception: what `function` raised about parameters, if it raises about names as well.
    """
    names = names_of(tree)

    def says_nothing(found: Any) -> bool:
        try:
            check(found)
            values = jax.tree.structure(names).flatten_up_to(found)
        except FlaxtrainError:
            return True
        except (TypeError, ValueError):  # not of the structure of the names
            return is_constant(found)
        return _all_the_same(values)

    try:
        found = asked(
            lambda: _sortable(function(tree)), lambda: _sortable(function(names)), says_nothing
        )
    except (jax.errors.JAXTypeError, FlaxtrainError):
        raise
    except Exception:
        values = _about_each(function, names, check)
        if values is None:
            raise
        return jax.tree.unflatten(jax.tree.structure(names), values)
    if not _is_one(found):
        return found
    values = _about_each(function, names, check)
    if values is None or _all_the_same(values + _about_no_parameter(function)):
        return found
    return jax.tree.unflatten(jax.tree.structure(names), values)


def _about_each(
    function: Callable[[Any], Any], names: PyTree, check: Callable[[PyTree], PyTree]
) -> list[Any] | None:
    """Returns one choice per name, or None where that is not what the function is about."""
    try:
        values = [function(name) for name in jax.tree.leaves(names)]
        check(values)
    except Exception:
        return None
    return values if all(map(_is_one, values)) else None


def _about_no_parameter(function: Callable[[Any], Any]) -> list[Any]:
    """Returns the answer about the empty name, to compare with.

    A function of names may say the same of all parameters, if these are all biases. One of
    trees (`isinstance(p, dict)`) says that of any text.
    """
    try:
        return [function(ParamName(()))]
    except Exception:
        return []


def _is_one(found: Any) -> bool:
    return found is None or jax.tree_util.treedef_is_leaf(jax.tree.structure(found))


def asked(
    about_values: Callable[[], T],
    about_names: Callable[[], T],
    says_nothing: Callable[[T], bool],
) -> T:
    """Returns the first answer, or the second where the first fails or says nothing.

    Args:
        about_values: asks a user's function about arrays, or facts.
        about_names: asks it about names.
        says_nothing: whether an answer is the same for all, or none at all.

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
    if not says_nothing(found):
        return found
    try:
        named = about_names()
    except Exception:
        return found
    return found if says_nothing(named) else named


def is_constant(tree: Any) -> bool:
    """Whether all leaves are the same: it may be that nothing was looked at."""
    return _all_the_same(jax.tree.leaves(tree))


def _all_the_same(values: list[Any]) -> bool:
    return all(same_value(value, values[0]) for value in values)


def _sortable(choice: Any) -> Any:
    """Returns a choice with text as keys where jax can't sort them: `{0: ..., "*": ...}`."""
    if type(choice) is not dict:
        return choice
    below = {key: _sortable(child) for key, child in choice.items()}
    try:
        sorted(below)
    except TypeError:
        return {str(key): child for key, child in below.items()}
    return below


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
    skipped = levels_above(tree)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_hole)
    names = [ParamName(tuple(map(key_of, keys[skipped:]))) for keys, _ in paths]
    entries = [(without_params(path, names), value) for path, value in _entries(choice)]
    found = [(_found(path, names), value) for path, value in entries]
    values = [
        next((value for covered, value in found if covered[i]), default)
        for i in range(len(names))
    ]
    there = [not _is_hole(node) for _, node in paths]
    if all(there):  # what a hole holds is not known, so no entry is wrong about it
        for (path, _), (covered, _) in zip(entries, found):
            if not any(covered):
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


def _found(path: Path, names: list[ParamName]) -> list[bool]:
    """Says of each name whether an entry is about it; as a pattern only if it is no path."""
    literally = [name.path[: len(path)] == path for name in names]
    return literally if any(literally) else found_by("/".join(path), names)


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
