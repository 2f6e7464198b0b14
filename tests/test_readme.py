"""Every Python block of the README and of the docs runs, alone and in an empty directory.

A `text` block directly below a Python block is what that block prints; `...` is anything. The
blocks of a tutorial, a page that says so in a comment, are one program: each goes on from those
above it.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.S | re.M
)

TUTORIAL = "<!-- one program -->"


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


def programs(text: str) -> list[list[Block]]:
    """Returns the blocks that run together."""
    found = blocks(text)
    return [found] if TUTORIAL in text else [[block] for block in found]


def run(block: Block, name: str, names: dict[str, Any] | None = None) -> None:
    """Runs the block among the names of those above it; errors show the line of the page."""
    code = compile("\n" * (block.line - 1) + block.code, name, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"} if names is None else names)
    if block.output is not None:
        same = doctest.OutputChecker().check_output(
            block.output, printed.getvalue(), doctest.ELLIPSIS
        )
        assert same, f"{name}:{block.line} prints\n{printed.getvalue()}"


def documents() -> list[Path]:
    pages = (p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
    return [ROOT / "README.md", *sorted(pages)]


CASES = [
    pytest.param(page, program, id=f"{page.relative_to(ROOT)}:{program[0].line}")
    for page in documents()
    for program in programs(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "program"), CASES)
def test_the_block_runs_and_prints_what_is_shown(
    page: Path, program: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in program:
        run(block, str(page), names)


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


def test_the_blocks_of_a_tutorial_go_on_from_one_another_and_others_stand_alone() -> None:
    text = "```python\nx = 1\n```\n```python\nprint(x)\n```\n"
    assert [len(program) for program in programs(text)] == [1, 1]
    with pytest.raises(NameError):
        run(programs(text)[1][0], "page")
    (together,) = programs(f"{TUTORIAL}\n{text}")
    names: dict[str, Any] = {}
    for block in together:
        run(block, "page", names)
    assert names["x"] == 1
