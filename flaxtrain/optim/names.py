"""Names of parameters as values: what masks, labels and multipliers by path are decided on.

A name is the path from the root of the parameters, `encoder/LayerNorm_0/scale`. The level
`params`, under which Linen's `init` returns them, is not part of it, so that one rule fits the
tree with that level and without. A name may know the class of the module that owns the
parameter; then `"norm" in name` is true for a `LayerNorm` that is called `ln_f`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeAlias

import jax
import numpy as np

from flaxtrain.errors import ArgumentTypeError, ParameterError, nearest
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, key_of, path_name
from flaxtrain.typing import Params, PyTree

__all__ = ["ParamName", "PathMask", "mask_by_path", "names_of"]

Pattern: TypeAlias = str | re.Pattern[str]
"""A path or the beginning of one, a glob, or a compiled regular expression."""

_SEPARATOR = re.compile(r"(?<!\\)/")


class ParamName(str):
    """The name of one parameter: a string that also knows its path and its owner's class.

    `in` ignores case, and looks into the name of the owner's class as well, in what `lower()`,
    `upper()` and `casefold()` return too. Everything else is as for any string.

    Attributes:
        path: the keys from the root to the parameter, without the level `params`.
        owner: the name of the class of the module that owns it, or None where not known.

    Args:
        path: the keys, or the name with `/` between them.
        owner: the class or its name. Of a class, `in` also sees the classes it derives from.

    Example:
        >>> name = ParamName("encoder/ln_f/scale", owner="LayerNorm")
        >>> "norm" in name, name.endswith("scale"), name.path
        (True, True, ('encoder', 'ln_f', 'scale'))
        >>> "norm" in ParamName("encoder/ln_f/scale")
        False
    """

    path: Path
    owner: str | None
    _owners: str

    def __new__(cls, path: str | Path, owner: str | type | None = None) -> ParamName:
        """Makes a name; see the class."""
        keys = _keys(path) if isinstance(path, str) else tuple(path)
        name = super().__new__(cls, path_name(keys))
        name.path = keys
        name.owner = owner.__name__ if isinstance(owner, type) else owner
        name._owners = " ".join(_lineage(owner)).casefold()
        return name

    def __contains__(self, key: str, /) -> bool:
        return key.casefold() in str.casefold(self) or key.casefold() in self._owners

    def lower(self) -> ParamName:
        """Returns the name in lower case, which still knows its owner."""
        return self._changed(str.lower)

    def upper(self) -> ParamName:
        """Returns the name in upper case, which still knows its owner."""
        return self._changed(str.upper)

    def casefold(self) -> ParamName:
        """Returns the name without case, which still knows its owner."""
        return self._changed(str.casefold)

    def _changed(self, change: Callable[[str], str]) -> ParamName:
        changed = ParamName(tuple(map(change, self.path)))
        changed.owner = None if self.owner is None else change(self.owner)
        changed._owners = self._owners
        return changed


def _keys(name: str) -> Path:
    """Inverse of `path_name`."""
    parts = _SEPARATOR.split(name)
    return tuple(part.replace("\\/", "/").replace("\\\\", "\\") for part in parts)


def _lineage(owner: str | type | None) -> list[str]:
    """Returns the names of a class and its bases, up to Linen's `Module`."""
    if not isinstance(owner, type):
        return [owner] if owner else []
    return list(takewhile(lambda name: name != "Module", (c.__name__ for c in owner.__mro__)))


def names_of(params: Params, owners: Mapping[str, str | type[Any]] | None = None) -> PyTree:
    """Returns the tree of names of a tree of parameters.

    Args:
        params: any pytree; a mapping with the single key `params` is looked into, and that
            level is left out of the names.
        owners: the class of the module that owns a parameter, or its name, by the parameter's
            name; parameters that it lacks have no owner.

    Returns:
        A tree like `params` with a `ParamName` at each leaf.

    Example:
        >>> names_of({"params": {"Dense_0": {"kernel": 1.0, "bias": 2.0}}})
        {'params': {'Dense_0': {'bias': 'Dense_0/bias', 'kernel': 'Dense_0/kernel'}}}
    """
    known, skipped = owners or {}, levels_above(params)

    def name(path: tuple[Any, ...], leaf: Any) -> ParamName:
        plain = ParamName(tuple(map(key_of, path[skipped:])))
        return ParamName(plain.path, known.get(str(plain)))

    return jax.tree_util.tree_map_with_path(name, params)


def levels_above(tree: PyTree) -> int:
    """Returns 1 for variables, `{"params": ...}`, whose top level is not in names; else 0."""
    return int(isinstance(tree, Mapping) and set(tree) == {"params"})


def matches(pattern: Pattern, name: ParamName) -> bool:
    """Whether a parameter is one that the pattern means, or lies below one.

    Example:
        >>> name = ParamName("encoder/Dense_0/kernel")
        >>> [matches(p, name) for p in ("encoder", "enc", "*/kernel", "Dense_?", "*/Dense_?")]
        [True, False, True, False, True]
    """
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    if _is_path_to(pattern, name):
        return True
    return any(fnmatch.fnmatchcase(name, text) for text in (pattern, pattern + "/*"))


def _is_path_to(text: str, name: ParamName) -> bool:
    return name == text or name.startswith(text + "/")


def found_by(pattern: Pattern, names: list[ParamName]) -> list[bool]:
    """Says of each name whether a pattern means it.

    Text that is the path of something there means just that, even if there is a `*` in it. A
    level `params` is left out of text, as it is left out of names.

    Example:
        >>> found_by("a*b", [ParamName("a*b/bias"), ParamName("axb")])
        [True, False]
        >>> found_by("params/*/bias", [ParamName("head/bias"), ParamName("head/kernel")])
        [True, False]
    """
    if isinstance(pattern, str):
        (pattern,) = without_params((pattern,), names) or ("*",)
        literally = [_is_path_to(pattern, name) for name in names]
        if any(literally):
            return literally
    return [matches(pattern, name) for name in names]


def without_params(path: Path, names: Iterable[ParamName]) -> Path:
    """Leaves the level `params` out of the keys of a choice, unless names have that level."""
    if not path or any(name.path[:1] == ("params",) for name in names):
        return path
    first, *below = path
    kept = () if first == "params" else (first.removeprefix("params/"),)
    return (*kept, *below)


def no_match(
    what: str, pattern: str, names: list[ParamName], where: str | None = None
) -> ParameterError:
    """Builds (does not raise) the error for a pattern that no parameter matches."""
    places = {path_name(name.path[:end]) for name in names for end in range(len(name.path) + 1)}
    close = nearest(pattern, places - {""}, count=3) or [str(name) for name in names[:3]]
    return ParameterError(
        f"the {what} does not fit the tree: no parameter matches {pattern!r}",
        where=where,
        fix=f"nearest: {', '.join(close) or '(there are no parameters)'}",
    )


class PathMask:
    """What `mask_by_path` returns: a function from parameters to a tree of bools.

    Attributes:
        predicate: the function or the patterns that it was made with.
    """

    def __init__(
        self, predicate: Callable[[ParamName], Any] | Pattern | Sequence[Pattern]
    ) -> None:
        one = isinstance(predicate, (str, re.Pattern))
        patterns = (predicate,) if one else predicate
        if not callable(patterns):
            patterns = _checked_patterns(patterns)
        self.predicate: Any = patterns

    def __call__(self, params: Params) -> PyTree:
        """Returns the mask of `params`.

        Raises:
            ParameterError: a pattern matches no parameter.
            ArgumentTypeError: the predicate returned something else than True or False.
        """
        names = names_of(params)
        if callable(self.predicate):
            return jax.tree.map(self._asked, names)
        flat = jax.tree.leaves(names)
        chosen = [False] * len(flat)
        for pattern in self.predicate:
            found = found_by(pattern, flat)
            chosen = [before or now for before, now in zip(chosen, found)]
            if flat and not any(found) and not has_holes(params):
                text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
                raise no_match("mask", text, flat, repr(self))
        return jax.tree.unflatten(jax.tree.structure(names), chosen)

    def _asked(self, name: ParamName) -> bool:
        answer = self.predicate(name)
        if isinstance(answer, (bool, np.bool_)):
            return bool(answer)
        raise ArgumentTypeError(
            f"{answer!r} is {kind_of(answer)}, not True or False",
            where=f"{self!r}, parameter {str(name)!r}",
            fix="return True where the parameter is meant and False where not",
        )

    def __repr__(self) -> str:
        return f"mask_by_path({self.predicate!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathMask) and self.predicate == other.predicate

    def __hash__(self) -> int:
        return hash(self.predicate)


def mask_by_path(
    predicate: Callable[[ParamName], Any] | Pattern | Sequence[Pattern],
) -> PathMask:
    """Makes a mask of parameters from their names, for every argument that takes a mask.

    Args:
        predicate: a function from a `ParamName` to a bool; or one or several patterns, of which
            one has to match. A pattern is a path or the beginning of one
            (`"encoder/Dense_0"`), a glob in which `*` also matches `/` (`"*/kernel"`), either
            with or without the level `params`; or a compiled regular expression, which is
            searched for in the name without that level.

    Returns:
        A function from parameters to a tree of bools like them.

    Raises:
        ArgumentTypeError: `predicate` is none of these.

    Example:
        >>> from flaxtrain.optim import adamw
        >>> params = {"Dense_0": {"kernel": 1.0, "bias": 1.0}, "LayerNorm_0": {"scale": 1.0}}
        >>> mask_by_path(lambda name: "bias" not in name and "norm" not in name)(params)
        {'Dense_0': {'bias': False, 'kernel': True}, 'LayerNorm_0': {'scale': False}}
        >>> adamw(1e-3, mask=mask_by_path(["*/kernel"]))
        adamw(learning_rate=0.001, mask=mask_by_path(('*/kernel',)))
    """
    return PathMask(predicate)


def _checked_patterns(patterns: Any) -> tuple[Pattern, ...]:
    listed = tuple(patterns) if isinstance(patterns, Iterable) else (patterns,)
    for pattern in listed:
        if not isinstance(pattern, (str, re.Pattern)):
            raise ArgumentTypeError(
                f"{pattern!r} is {kind_of(pattern)}",
                where="mask_by_path",
                fix="pass a function of a name, a pattern such as '*/kernel', or several",
            )
    return listed


def has_holes(tree: PyTree) -> bool:
    """Whether parts of a tree are left out: `None`, `MaskedNode()`, an empty dict.

    What is missing there is not known, so no pattern is wrong about it.
    """
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: not jax.tree.leaves(node))
    return any(not jax.tree.leaves(node) for node in nodes)
