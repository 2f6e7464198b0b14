"""Text that a person reads: tables, lists, numbers with their units."""

from __future__ import annotations

import numpy as np
import pytest

from flaxtrain.text import (
    TextTable,
    counted,
    kind_of,
    listed,
    numbered_rows,
    readable_bytes,
    with_article,
)

TABLE = TextTable(
    ("name", "size", "selects"),
    (("a", "1,000", "x|y"), ("bcd", "7", "")),
    right=("size",),
    code=("selects",),
)


def test_text_is_aligned_and_has_no_spaces_at_the_end() -> None:
    assert (
        str(TABLE)
        == """\
name   size  selects
a     1,000  x|y
bcd       7"""
    )


def test_markdown_escapes_bars_and_leaves_empty_cells_empty() -> None:
    assert (
        TABLE.markdown()
        == """\
| name | size | selects |
|---|---:|---|
| a | 1,000 | `x\\|y` |
| bcd | 7 |  |"""
    )


def test_a_table_without_rows_has_its_titles() -> None:
    assert str(TextTable(("a", "b"), ())) == "a  b"


def test_rows_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        str(TextTable(("a", "b"), (("1",),)))


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more")],
)
def test_a_long_list_is_cut(names: list[str], text: str) -> None:
    assert listed(names, shown=2) == text


def test_numbers_have_their_nouns() -> None:
    found = [counted(number, "array") for number in (0, 1, 2_000)]
    assert found == ["0 arrays", "1 array", "2,000 arrays"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (4, "4 B"),
        (1024, "1.0 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**51, "2,048.0 TiB"),
    ],
)
def test_memory_is_in_readable_units(size: int, text: str) -> None:
    assert readable_bytes(size) == text


def test_a_value_is_named_by_its_class_with_an_article() -> None:
    found = [kind_of(value) for value in (3, "3", None, np.ones(2), object(), True)]
    assert found == ["an int", "a str", "a NoneType", "an ndarray", "an object", "a bool"]


def test_the_article_goes_by_the_sound() -> None:
    an = ("array", "OptSpec", "_Entry", "MLP", "RMSNorm", "UnknownNameError", "UpdateFn")
    a = ("tuple", "Dense", "_Leaf", "LoRA", "uint8", "Union", "UserDict", "UUID", "GRUCell")
    assert [with_article(noun) for noun in an] == [f"an {noun}" for noun in an]
    assert [with_article(noun) for noun in a] == [f"a {noun}" for noun in a]


def test_rows_are_numbered_up_to_the_eighth() -> None:
    assert numbered_rows(tuple(range(8))) == "rows 0, 1, 2, 3, 4, 5, 6, 7"
    assert numbered_rows(tuple(range(9))) == "rows 0, 1, 2, 3, 4, 5, 6, 7, ... (9 in all)"
