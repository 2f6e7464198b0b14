from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.params.restore import Restore


def test_a_restore_prints_as_the_call_that_makes_it() -> None:
    restore = Restore(
        Path("/ckpt/vit"),
        rename={"enc/(.*)": r"body/\1"},
        skip=["head"],
        reshape={"pos": "interp2d"},
        strict=False,
        dtype="cast",
    )
    again = eval(repr(restore))
    assert again.rename == {"enc/(.*)": r"body/\1"} and again.reshape == {"pos": "interp2d"}
    assert again.skip == ("head",) and again.strict is False and again.dtype == "cast"
    assert repr(again) == repr(restore)
    assert repr(Restore("/ckpt/vit")) == "Restore('/ckpt/vit')"


def test_a_tree_in_memory_is_not_printed() -> None:
    tree = {"a": np.zeros(1000), "b": {"c": np.zeros(1000)}}
    assert repr(Restore(tree, strict=False)) == "Restore(<dict of 2 arrays>, strict=False)"


def test_later_changes_of_the_arguments_change_nothing() -> None:
    rename, skip = {"a": "b"}, ["head"]
    restore = Restore("/ckpt", rename=rename, skip=skip)
    rename["c"], skip[0] = "d", "tail"
    assert restore.rename == {"a": "b"} and restore.skip == ("head",)


WRONG = [
    (ArgumentTypeError, {"source": None}, "a NoneType, neither a path nor a tree"),
    (ArgumentTypeError, {"source": 3}, "an int, neither"),
    (ArgumentTypeError, {"source": np.zeros(2)}, "an ndarray, neither"),
    (ArgumentTypeError, {"source": ["/a", "/b"]}, "a list, neither"),
    (ArgumentError, {"source": ""}, "is not a path"),
    (ArgumentTypeError, {"renames": {}}, "unexpected keyword argument 'renames'"),
    (ArgumentTypeError, {"rename": [("a", "b")]}, "rename is a list, not a mapping"),
    (ArgumentTypeError, {"rename": {"a": 3}}, "is not a pair of strings"),
    (ArgumentTypeError, {"rename": {3: "a"}}, "is not a pair of strings"),
    (ArgumentError, {"rename": {"enc/(.*": "a"}}, "'enc/(.*' is malformed"),
    (ArgumentError, {"rename": {"": "a"}}, "the regular expression is empty"),
    (ArgumentError, {"rename": {"enc/.*": ""}}, "the replacement is empty"),
    (ArgumentError, {"rename": {"enc/.*": r"body/\1"}}, "invalid group reference 1"),
    (ArgumentError, {"rename": {"(.*)": r"\g<x>"}}, "unknown group name 'x'"),
    (ArgumentTypeError, {"skip": "head"}, "not a list of patterns"),
    (ArgumentTypeError, {"skip": 3}, "not a list of patterns"),
    (ArgumentTypeError, {"skip": [3]}, "is an int, not a string"),
    (ArgumentError, {"skip": ["head/"]}, "an empty level in 'head/'"),
    (ArgumentError, {"skip": [""]}, "an empty level in ''"),
    (ArgumentError, {"skip": ["re:("]}, "is malformed"),
    (ArgumentError, {"skip": ["a**/b"]}, "** beside something else"),
    (ArgumentError, {"skip": ["@LayerNorm"]}, "is no path"),
    (ArgumentTypeError, {"reshape": "interp2d"}, "reshape is a str, not a mapping"),
    (UnknownNameError, {"reshape": {"pos": "interp"}}, "unknown reshaping 'interp'"),
    (ArgumentTypeError, {"reshape": {"pos": 2}}, "not a way of reshaping"),
    (ArgumentError, {"reshape": {"a//b": "interp2d"}}, "an empty level"),
    (ArgumentTypeError, {"strict": 1}, "strict=1 is an int"),
    (UnknownNameError, {"dtype": "exactly"}, "unknown dtype 'exactly'"),
    (ArgumentTypeError, {"dtype": np.float32}, "not a string"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("error", "arguments", "text"), WRONG)
def test_a_wrong_argument_is_refused_when_the_restore_is_made(
    error: type[FlaxtrainError], arguments: dict, text: str
) -> None:
    with pytest.raises(error) as caught:
        Restore(**{"source": "/ckpt"} | arguments)
    assert text in caught.value.found
    assert caught.value.where is not None and caught.value.fix


def test_the_fix_of_a_lone_skip_is_the_list() -> None:
    with pytest.raises(FlaxtrainError, match="not a list") as caught:
        Restore("/ckpt", skip="head")
    assert "['head']" in str(caught.value.fix)
