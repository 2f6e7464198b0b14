"""Text that a person reads: tables, lists, numbers with their units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "TextTable",
    "counted",
    "kind_of",
    "listed",
    "numbered_rows",
    "readable_bytes",
    "with_article",
]

# Sounds, not letters: a unit, an umbrella, an RMSNorm.
_TAKES_AN = re.compile(r"_*([AEIOaeio]|[Uu](n(?!i)|[mp])|[FHLMNRSX][A-Z]|nd)")


@dataclass(frozen=True)
class TextTable:
    """Cells of text under titles; `str(table)` is aligned text, `markdown()` a markdown table.

    Args:
        columns: the titles.
        rows: the cells, as many in each row as there are titles.
        right: the titles of the columns that are aligned to the right: numbers.
        code: the titles of the columns that markdown shows as code: paths and selectors.

    Example:
        >>> table = TextTable(("name", "size"), (("a/b", "12"), ("c", "5")), right=("size",))
        >>> print(table)
        name  size
        a/b     12
        c        5
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()
    code: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(self._line(cells, widths) for cells in lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = (
            cell.rjust(width) if title in self.right else cell.ljust(width)
            for title, cell, width in zip(self.columns, cells, widths, strict=True)
        )
        return "  ".join(aligned).rstrip()

    def markdown(self) -> str:
        """Returns the table as markdown.

        Example:
            >>> table = TextTable(("path", "size"), (("a|b", "5"),), ("size",), ("path",))
            >>> print(table.markdown())
            | path | size |
            |---|---:|
            | `a\\|b` | 5 |
        """
        rules = ["---:" if title in self.right else "---" for title in self.columns]
        lines = [f"| {' | '.join(self.columns)} |", f"|{'|'.join(rules)}|"]
        for row in self.rows:
            cells = [
                f"`{cell}`" if cell and title in self.code else cell
                for title, cell in zip(self.columns, row, strict=True)
            ]
            lines.append(
                f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
            )
        return "\n".join(lines)


def listed(names: Sequence[Any], shown: int = 5) -> str:
    """Returns names in one line, the first few of them and how many more there are.

    Example:
        >>> listed("abcdef", shown=2)
        'a, b and 4 more'
    """
    rest = len(names) - shown
    return ", ".join(map(str, names[:shown])) + (f" and {rest:,} more" if rest > 0 else "")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns how many of something there are.

    Args:
        number: how many.
        noun: what one of them is called.
        plural: what several are called; None: the noun with an s.

    Example:
        >>> counted(1, "array"), counted(1000, "value"), counted(2, "batch", "batches")
        ('1 array', '1,000 values', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def numbered_rows(rows: tuple[int, ...], word: str = "row") -> str:
    """Returns numbers of rows as text, the first eight of them.

    Example:
        >>> numbered_rows((3,)), numbered_rows((1, 2)), numbered_rows((7, 8), "example")
        ('row 3', 'rows 1, 2', 'examples 7, 8')
    """
    shown = ", ".join(map(str, rows[:8]))
    more = f", ... ({len(rows)} in all)" if len(rows) > 8 else ""
    return f"{word}{'' if len(rows) == 1 else 's'} {shown}{more}"


def readable_bytes(number: float) -> str:
    """Returns a number of bytes as people write it.

    Example:
        >>> readable_bytes(600), readable_bytes(2048)
        ('600 B', '2.0 KiB')
    """
    if number < 1024:
        return f"{number} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:,.1f} TiB"


def with_article(noun: str) -> str:
    """Returns a noun, or the name of a class, with its indefinite article.

    Example:
        >>> with_article("int"), with_article("str"), with_article("Unit"), with_article("MLP")
        ('an int', 'a str', 'a Unit', 'an MLP')
    """
    return f"{'an' if _TAKES_AN.match(noun) else 'a'} {noun}"


def kind_of(value: Any) -> str:
    """Returns the name of a value's class with its article, as messages say it.

    Example:
        >>> kind_of(3), kind_of("3")
        ('an int', 'a str')
    """
    return with_article(type(value).__name__)
