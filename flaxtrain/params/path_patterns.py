r"""Patterns of paths in a tree of variables: globs and regular expressions, as in selectors.

    head             the module `head` and everything below it
    encoder/*/bias   `*`, `?` and `[ab]` stand for characters of one level
    **/bias          `**` stands for any number of levels, also for none
    body/layer_?/**  with wildcards, a pattern is for whole paths
    re:.*/bias       a regular expression that matches the whole path

A pattern that begins with the name of a collection, `batch_stats/head`, is for that collection.
Any other is for paths inside of all collections: `head` is the parameters and the statistics.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.params.globs import glob_pattern, path_text
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, path_name

# Nothing here is public: the arguments of `Restore` are.
__all__ = []


def shown_name(path: Path) -> str:
    """Returns the name that people see: without the collection where that is `params`.

    Example:
        >>> shown_name(("params", "a", "bias")), shown_name(("batch_stats", "a", "mean"))
        ('a/bias', 'batch_stats/a/mean')
    """
    return path_name(path[1:] if path[0] == "params" else path)


@dataclass(frozen=True)
class PathPattern:
    """One pattern; see the head of this file.

    Args:
        text: the pattern.
        where: the argument it comes from, for messages.

    Raises:
        ArgumentTypeError: it is no string.
        ArgumentError: a regular expression or a glob is malformed.

    Example:
        >>> PathPattern("head").matches(("params", "head", "kernel"))
        True
        >>> PathPattern("head").matches(("params", "head_2", "kernel"))
        False
    """

    text: str
    where: str = "pattern"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ArgumentTypeError(
                f"the pattern {self.text!r} is {kind_of(self.text)}, not a string",
                where=self.where,
                fix="pass paths such as 'head' or '**/bias', or 're:' and an expression",
            )
        if self.text.startswith("re:"):
            compiled(self.text[3:], self.where)
        elif self.text[:1] in ("@", "#", "&", "|", "~"):
            raise ArgumentError(
                f"the pattern {self.text!r} is no path",
                where=self.where,
                fix="here patterns are paths, globs or 're:' expressions, not classes or roles",
            )
        else:
            try:
                _glob(self.text)
            except ArgumentError as error:
                raise ArgumentError(error.found, where=self.where, fix=error.fix) from None

    def matches(self, path: Path) -> bool:
        """Whether the pattern matches a path that begins with its collection."""
        if self.text.startswith("re:"):
            expression = self.text[3:]
            name = path_name(as_addressed(expression, path))
            return compiled(expression, self.where).fullmatch(name) is not None
        # A glob takes a leading `params/` for optional; here it says which collection is meant.
        if self.text.startswith("params/") and path[0] != "params":
            return False
        text = path_text(as_addressed(self.text, path))
        return _glob(self.text).fullmatch(text) is not None


_glob = functools.lru_cache(glob_pattern)


def as_addressed(pattern: str, path: Path) -> Path:
    """Returns a path as a pattern spells it: with its collection if the pattern begins so.

    Example:
        >>> as_addressed("batch_stats/a", ("batch_stats", "a", "mean"))
        ('batch_stats', 'a', 'mean')
        >>> as_addressed("a", ("batch_stats", "a", "mean"))
        ('a', 'mean')
    """
    spelled = pattern == path[0] or pattern.startswith(path[0] + "/")
    return path if spelled else path[1:]


def compiled(expression: str, where: str) -> re.Pattern[str]:
    """Returns a compiled regular expression.

    Raises:
        ArgumentError: it is empty or malformed.
    """
    if not expression:
        raise ArgumentError(
            "the regular expression is empty",
            where=where,
            fix="write an expression that matches whole paths, such as 'enc/(.*)'",
        )
    try:
        return re.compile(expression)
    except re.error as error:
        raise ArgumentError(
            f"the regular expression {expression!r} is malformed: {error}",
            where=where,
            fix="write an expression of Python's `re`, such as 'enc/(.*)'",
        ) from None
