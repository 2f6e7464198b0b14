"""Every Python block of the README and of the docs runs, alone and in an empty directory.

A `text` block directly below a Python block is what that block prints; `...` is anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.S | re.M
)


class Block(NamedTuple):
    """A Python block, the line it starts on, and what it should print if that is shown."""

    code: str
    line: int
    output: str | None


def blocks(text: str) -> list[Block]:
    return [
        Block(m["code"], text.count("\n", 0, m.start("code")) + 1, m["output"])
        for m in FENCE.finditer(text)
    ]


def run(block: Block, name: str) -> None:
    """Runs the block; errors show the line in the document."""
    code = compile("\n" * (block.line - 1) + block.code, name, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    if block.output is not None:
        same = doctest.OutputChecker().check_output(
            block.output, printed.getvalue(), doctest.ELLIPSIS
        )
        assert same, f"{name}:{block.line} prints\n{printed.getvalue()}"


def documents() -> list[Path]:
    pages = (p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
    return [ROOT / "README.md", *sorted(pages)]


CASES = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}:{block.line}")
    for page in documents()
    for block in blocks(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "block"), CASES)
def test_the_block_runs_and_prints_what_is_shown(
    page: Path, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(block, str(page))


def test_the_quickstart_is_found_and_fits_on_a_screen() -> None:
    quickstart = blocks((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    assert "ft.Trainer(" in quickstart.code and ".fit(" in quickstart.code
    lines = [line for line in quickstart.code.splitlines() if line.strip()]
    assert len(lines) <= 20, "the quickstart promises twenty lines"


def test_a_block_that_fails_or_prints_something_else_is_found() -> None:
    text = "```python\nprint('one', 2)\n```\n\n```text\none ...\n```\n```python\n1 / 0\n```\n"
    good, bad = blocks(text)
    run(good, "page")
    with pytest.raises(AssertionError, match="page:2 prints"):
        run(good._replace(output="two\n"), "page")
    with pytest.raises(ZeroDivisionError):
        run(bad, "page")
