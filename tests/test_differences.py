"""Every difference from Optax that the docs list names a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "differences.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def tables() -> dict[str, list[str]]:
    """Returns the rows of the table of each section that has one, without its header."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, *lines = section.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        if rows:
            assert rows[0].startswith("| where |") and set(rows[1]) <= set("|-")
            found[title] = rows[2:]
    return found


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("title", tables())
def test_every_row_of_the_differences_names_a_test_that_exists(title: str) -> None:
    rows = tables()[title]
    assert rows, "a table without rows"
    for row in rows:
        named = TEST.findall(row.rsplit("|", 2)[1])
        assert named, row
        for path, name in named:
            assert (ROOT / path).is_file() and name in names_in(path), f"{path}::{name}"


def test_tests_that_are_named_between_the_tables_exist() -> None:
    for path, name in TEST.findall(PAGE.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file() and name in names_in(path), f"{path}::{name}"
