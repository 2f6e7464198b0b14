"""Reads the text of a selector.

From loose to tight: `a | b`, `a & b`, `~a`, and the simple ones: a path or glob, `@Class`,
`#role` or `#hidden`, `re:...`, or anything in parentheses. Blanks are free, except in a regular
expression, which takes all that follows, up to the end of the text or of the parentheses it
stands in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flaxtrain.errors import ArgumentError, FlaxtrainError, unknown_name
from flaxtrain.params.roles import ROLES
from flaxtrain.params.selectors import Glob, Hidden, OfClass, OfRole, Regex, Selector

__all__ = ["FORMS", "parse"]

FORMS = (
    "write a path ('encoder', 'encoder/**/kernel'), 're:...', '@LayerNorm' or '#bias', "
    "combined with & | ~ and parentheses"
)
"""The ways to write a selector, for messages."""

_WORD = re.compile(r"(?:\\.|\[!?\]?[^\]]*\]|[^\s&|~()\\\[])+", re.DOTALL)
_REGEX = "re:"


def parse(text: str, where: str) -> Selector:
    """Returns the selector that a text describes.

    Args:
        text: in the syntax above.
        where: the argument, for messages.

    Raises:
        ArgumentError: the text can't be read, or a regular expression in it.
        UnknownNameError: there is no such role.

    Example:
        >>> parse("#kernel & ~(head/** | @Embed)", "freeze=")
        selector('#kernel & ~(head/** | @Embed)')
    """
    reader = _Reader(text, where)
    found = reader.any_of()
    left = reader.next()
    if left == ")":
        raise reader.error("a ) without its (")
    if left:
        raise reader.error(f"no operator before {text[reader.place :][:20]!r}", _OPERATORS)
    return found


_OPERATORS = "write & between them for both, or | for either; a \\ before a blank keeps it"


@dataclass
class _Reader:
    text: str
    where: str
    place: int = 0
    depth: int = 0

    def next(self) -> str:
        """Passes over blanks and returns the next character, or nothing at the end."""
        while self.text[self.place : self.place + 1].isspace():
            self.place += 1
        return self.text[self.place : self.place + 1]

    def error(self, found: str, fix: str = FORMS) -> ArgumentError:
        place = f"at character {self.place + 1} of {self.text!r}"
        return ArgumentError(f"{found}, {place}", where=self.where, fix=fix)

    def any_of(self) -> Selector:
        found = self.all_of()
        while self.next() == "|":
            self.place += 1
            found = found | self.all_of()
        return found

    def all_of(self) -> Selector:
        found = self.one()
        while self.next() == "&":
            self.place += 1
            found = found & self.one()
        return found

    def one(self) -> Selector:
        start = self.next()
        if start == "~":
            self.place += 1
            return ~self.one()
        if start == "(":
            return self.in_parentheses()
        if self.text.startswith(_REGEX, self.place):
            return self.regex()
        word = _WORD.match(self.text, self.place)
        if word is None:
            raise self.no_selector(start)
        self.place = word.end()
        return _simple(word.group(), self.where)

    def in_parentheses(self) -> Selector:
        opened = self.place
        self.place, self.depth = self.place + 1, self.depth + 1
        found = self.any_of()
        if self.next() != ")":
            self.place = opened
            raise self.error("a ( without its )")
        self.place, self.depth = self.place + 1, self.depth - 1
        return found

    def regex(self) -> Selector:
        self.place += len(_REGEX)
        rest = self.text[self.place :]
        pattern = rest[: _end_of_regex(rest)] if self.depth else rest
        try:
            if not pattern:
                raise self.error("an empty regular expression")
            re.compile(pattern)
        except re.error as error:
            self.place += error.pos or 0
            raise self.error(
                f"the regular expression {pattern!r} breaks: {error.msg}",
                "it goes on to the end of the text, or of the parentheses it stands in; in a "
                "combination, write '(re:...)'",
            ) from None
        if _end_of_regex(pattern + ")") != len(pattern):
            raise self.error(
                "a regular expression with an unpaired ) in a comment",
                "leave the comment out",
            )
        self.place += len(pattern)
        return Regex(pattern)

    def no_selector(self, start: str) -> ArgumentError:
        if not self.text.strip():
            return self.error("an empty text")
        if not start:
            return self.error("nothing where a selector is expected")
        if start == "[":
            return self.error("a [ without its ]", "close it, or write \\[ for the character")
        return self.error(f"{start!r} where a selector is expected")


def _end_of_regex(text: str) -> int:
    """Returns where the `)` is that closes the parentheses around: the first that can be."""
    places = [place for place, character in enumerate(text) if character == ")"]
    for place in places:
        try:
            re.compile(text[:place])
        except re.error:
            continue
        return place
    return places[-1] if places else len(text)


def _simple(word: str, where: str) -> Selector:
    name = word[1:]
    if word[0] == "#":
        if name == "hidden":
            return Hidden()
        if name not in ROLES:
            raise unknown_name("role", name, (*ROLES, "hidden"), where=where)
        return OfRole(name)
    if word[0] == "@":
        if not name.isidentifier():
            raise ArgumentError(
                f"{word!r} names no class",
                where=where,
                fix="write the class's own name after the @, as in '@LayerNorm'",
            )
        return OfClass(name)
    try:
        return Glob(word)
    except FlaxtrainError as error:  # it does not know where its text comes from
        raise type(error)(error.found, where=where, fix=error.fix) from None
