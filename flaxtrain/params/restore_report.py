"""What became of every array of a pretrained start, and guesses at renames that lack."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from flaxtrain.text import TextTable, counted
from flaxtrain.tree import Path, path_name

__all__ = ["RestoreRecord", "RestoreReport"]

# Guessing compares every array without a source with every array without a place.
_GUESSED = 200


@dataclass(frozen=True)
class RestoreRecord:
    """One array of a restore.

    Attributes:
        path: its path in the variables; without the collection where that is `params`. For an
            unused array, the path at which it would have been.
        array: dtype and shape there, as `float32[3,4]`; empty where there is no such path.
        source: its path in the source; empty where the source has none.
        source_array: dtype and shape in the source; empty where it has none.
    """

    path: str
    array: str = ""
    source: str = ""
    source_array: str = ""


@dataclass(frozen=True)
class RestoreReport:
    """What was restored: `str(report)` is aligned text, `markdown()` is for TensorBoard.

    Attributes:
        loaded: arrays that came from the source, in the order of the variables.
        renamed: those of them that an entry of `rename` gave another path.
        reshaped: those of them that an entry of `reshape` changed.
        cast: those of them that were cast to another dtype.
        skipped: arrays left out by an entry of `skip`, in the variables or in the source only.
        missing: arrays of the variables without a counterpart; they keep their initial values.
        unused: arrays of the source without a place.
        ignored: parts of a training state that are not variables, such as `opt_state`.
        source: where the arrays came from, if known.

    Example:
        >>> kernel = RestoreRecord("b/w", "float32[2]", "a/w", "float32[2]")
        >>> head = RestoreRecord("head/w", "float32[3]")
        >>> print(RestoreReport(loaded=(kernel,), renamed=(kernel,), skipped=(head,)))
        loaded 1 array (1 renamed), skipped 1
        outcome          path    array       source  in the source
        loaded, renamed  b/w     float32[2]  a/w     float32[2]
        skipped          head/w  float32[3]
    """

    loaded: tuple[RestoreRecord, ...] = ()
    renamed: tuple[RestoreRecord, ...] = ()
    reshaped: tuple[RestoreRecord, ...] = ()
    cast: tuple[RestoreRecord, ...] = ()
    skipped: tuple[RestoreRecord, ...] = ()
    missing: tuple[RestoreRecord, ...] = ()
    unused: tuple[RestoreRecord, ...] = ()
    ignored: tuple[str, ...] = ()
    source: str = ""

    @property
    def summary(self) -> str:
        """One line with the counts; what did not occur is left out.

        Example:
            >>> RestoreReport(missing=(RestoreRecord("head/w"),), source="/ckpt/500").summary
            'loaded 0 arrays from /ckpt/500, missing 1'
        """
        how = [
            f"{len(getattr(self, word))} {word}"
            for word in ("renamed", "reshaped", "cast")
            if getattr(self, word)
        ]
        rest = [
            f"{word} {len(getattr(self, word))}"
            for word in ("skipped", "missing", "unused")
            if getattr(self, word)
        ]
        origin = f" from {self.source}" if self.source else ""
        detail = f" ({', '.join(how)})" if how else ""
        loaded = counted(len(self.loaded), "array")
        return ", ".join([f"loaded {loaded}{origin}{detail}", *rest])

    def __str__(self) -> str:
        """Returns the summary and the table as aligned text."""
        return "\n".join([self.summary, str(self._table()), *self._notes()])

    def markdown(self) -> str:
        """Returns the summary and the table as markdown.

        Example:
            >>> head = RestoreRecord("head/w", "float32[3]")
            >>> print(RestoreReport(missing=(head,)).markdown())
            loaded 0 arrays, missing 1
            <BLANKLINE>
            | outcome | path | array | source | in the source |
            |---|---|---|---|---|
            | missing | `head/w` | float32[3] |  |  |
        """
        notes = [f"\n{note}" for note in self._notes()]
        return "\n".join([self.summary, "", self._table().markdown(), *notes])

    def _table(self) -> TextTable:
        return TextTable(_COLUMNS, tuple(self._rows()), code=("path", "source"))

    def _rows(self) -> list[tuple[str, ...]]:
        changes = {word: set(getattr(self, word)) for word in ("renamed", "reshaped", "cast")}
        rows = []
        for kind in ("loaded", "skipped", "missing", "unused"):
            for record in getattr(self, kind):
                how = [word for word, changed in changes.items() if record in changed]
                cells = (record.path, record.array, record.source, record.source_array)
                rows.append((", ".join([kind, *how]), *cells))
        return rows

    def _notes(self) -> list[str]:
        if not self.ignored:
            return []
        return [f"note: not looked at, parts of a training state: {', '.join(self.ignored)}"]


_COLUMNS = ("outcome", "path", "array", "source", "in the source")


def likely_renames(
    missing: Mapping[Path, tuple[int, ...]],
    unused: Mapping[Path, tuple[int, ...]],
    *,
    others: bool = False,
) -> dict[str, str]:
    r"""Returns entries of `rename` that would bring arrays without a place to where one lacks.

    Two arrays are taken for the same if they are in one collection, have the same shape and
    the most keys at the end in common. The prefixes that most pairs agree on come first.

    Args:
        missing: shapes by path, collection first, of what lacks a source.
        unused: shapes by path of what lacks a place.
        others: whether the source has arrays that are in their place already; then an entry
            that adds a level names the modules it is for.

    Returns:
        At most three entries.

    Example:
        >>> likely_renames(
        ...     {("params", "body", "a", "kernel"): (2,)},
        ...     {("params", "enc", "a", "kernel"): (2,)},
        ... )
        {'enc/(.*)': 'body/\\1'}
    """
    votes: Counter[tuple[Path, Path]] = Counter()
    below: defaultdict[tuple[Path, Path], set[str]] = defaultdict(set)
    for path, shape in list(missing.items())[:_GUESSED]:
        same = [
            other
            for other, other_shape in list(unused.items())[:_GUESSED]
            if other_shape == shape and other[0] == path[0]
        ]
        best = max(same, key=lambda other: _common_end(other, path), default=None)
        if best is not None and (common := _common_end(best, path)):
            pair = best[1 : len(best) - common], path[1 : len(path) - common]
            votes[pair] += 1
            below[pair].add(path_name((best[-common],)))
    entries: dict[str, str] = {}
    for (before, after), _ in votes.most_common(3):
        pattern = re.escape(path_name(before)) + "/(.*)" if before else "(.*)"
        if others and not before:
            modules = "|".join(map(re.escape, sorted(below[before, after])))
            pattern = f"((?:{modules})(?:/.*)?)"
        # A backslash of the path (it escapes a slash in a key) is doubled in a replacement.
        replacement = path_name(after).replace("\\", "\\\\") + "/\\1" if after else "\\1"
        entries.setdefault(pattern, replacement)
    return entries


def _common_end(first: Path, second: Path) -> int:
    """The number of last keys that two paths share, without the collection."""
    count = 0
    for one, other in zip(reversed(first[1:]), reversed(second[1:])):
        if one != other:
            break
        count += 1
    return count
