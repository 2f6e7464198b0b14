"""Tables as aligned text and as markdown."""

from __future__ import annotations

import pytest

from flaxtrain.params.text_table import TextTable, listed

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
