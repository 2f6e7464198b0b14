"""The string form of a path leads back to its keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxtrain.tree import keys_of, path_name

PATHS = st.lists(st.text(alphabet="ab/\\.", max_size=4), min_size=1, max_size=4).map(tuple)


@given(PATHS)
def test_keys_of_is_the_inverse_of_path_name(path: tuple[str, ...]) -> None:
    assert keys_of(path_name(path)) == path


@pytest.mark.parametrize(
    ("name", "keys"),
    [("", ("",)), ("/a", ("", "a")), ("a/", ("a", "")), ("a//b", ("a", "", "b"))],
)
def test_empty_keys_are_kept(name: str, keys: tuple[str, ...]) -> None:
    assert keys_of(name) == keys


def test_a_backslash_at_the_end_stands_for_itself() -> None:
    assert keys_of("a\\") == ("a\\",)
