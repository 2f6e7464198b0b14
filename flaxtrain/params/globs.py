"""Globs on paths: `encoder/**/kernel` as a regular expression.

`*`, `?` and `[..]` stand for characters within one level, `**` for any number of levels. A path
without wildcards stands for everything below it as well. `\\x` is the character x.
"""

from __future__ import annotations

import itertools
import re

from flaxtrain.errors import ArgumentError
from flaxtrain.tree import Path

__all__ = ["glob_pattern", "path_text"]

# A path is matched as text in which every key ends with this character: keys may contain `/`.
_END = "\0"
_DEEP = f"(?:[^{_END}]*{_END})*"
# A character, one behind a backslash, or a set of characters.
_PIECE = re.compile(r"\\.|\[!?\]?[^\]]*\]|.", re.DOTALL)


def path_text(path: Path) -> str:
    """Returns a path as the text that the pattern of a glob is for."""
    return "".join(key + _END for key in path)


def glob_pattern(text: str) -> re.Pattern[str]:
    """Returns the regular expression of a glob, for a full match with a `path_text`.

    A level `params` in front fits paths without it too: the tables of facts lack it.

    Raises:
        ArgumentError: a level is empty, `**` is only a part of one, or a set is none.

    Example:
        >>> pattern = glob_pattern("block_[0-3]/**/kernel")
        >>> paths = [("block_0", "kernel"), ("block_1", "mlp", "kernel"), ("block_4", "kernel")]
        >>> [pattern.fullmatch(path_text(path)) is not None for path in paths]
        [True, True, False]
    """
    pieces = _PIECE.findall(text)
    levels = [_level(level, text) for level in _split(pieces)]
    if len(levels) > 1 and levels[0] == "params" + _END:
        levels[0] = f"(?:{levels[0]})?"
    plain = not any(map(_is_wildcard, pieces))
    return re.compile("".join(levels) + (_DEEP if plain else ""), re.DOTALL)


def _is_wildcard(piece: str) -> bool:
    return piece in ("*", "?") or (len(piece) > 1 and piece[0] == "[")


def _split(pieces: list[str]) -> list[list[str]]:
    levels: list[list[str]] = [[]]
    for piece in pieces:
        if piece == "/":
            levels.append([])
        else:
            levels[-1].append(piece)
    return levels


def _level(pieces: list[str], text: str) -> str:
    """Returns the regular expression of one level."""
    if pieces == ["*", "*"]:
        return _DEEP
    if not pieces:
        raise ArgumentError(
            f"an empty level in {text!r}", fix="write single / between levels, none at the ends"
        )
    if ("*", "*") in itertools.pairwise(pieces):
        raise ArgumentError(
            f"** beside something else in a level of {text!r}",
            fix="** is for whole levels, as in 'encoder/**/kernel'; within a level, write *",
        )
    return "".join(_piece(piece, text) for piece in pieces) + _END


def _piece(piece: str, text: str) -> str:
    if not _is_wildcard(piece):
        return re.escape(piece[-1])
    if piece in ("*", "?"):
        return f"[^{_END}]" + piece.replace("?", "")
    inside = piece[1:-1]
    start = f"[^{_END}" if inside.startswith("!") else "["
    escaped = (c if c == "-" else re.escape(c) for c in inside.removeprefix("!"))
    expression = f"{start}{''.join(escaped)}]"
    try:
        re.compile(expression)
    except re.error as error:
        raise ArgumentError(
            f"{piece} in {text!r} is no set of characters: {error.msg}",
            fix="write [abc], [a-z], or [!abc] for all others",
        ) from None
    return expression
