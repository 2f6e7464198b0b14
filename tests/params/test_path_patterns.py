from __future__ import annotations

import pytest

from flaxtrain.params.path_patterns import PathPattern, shown_name

TABLE = [
    ("head", "params/head/kernel", True),
    ("head", "batch_stats/head/mean", True),
    ("head", "params/head_2/kernel", False),
    ("head", "params/body/head/kernel", False),
    ("head/kernel", "params/head/kernel", True),
    ("params/head", "params/head/kernel", True),
    ("params/head", "batch_stats/head/mean", False),
    ("batch_stats", "batch_stats/body/bn/mean", True),
    ("batch_stats", "params/body/bn/scale", False),
    ("head/**", "params/head/a/b/kernel", True),
    ("**/bias", "params/bias", True),
    ("**/bias", "params/a/b/bias", True),
    ("**/bias", "params/a/b/bias_2", False),
    ("*/bias", "params/a/bias", True),
    ("*/bias", "params/a/b/bias", False),
    ("*/bias", "params/bias", False),
    ("head/*", "params/head/a/bias", False),
    ("params/**", "batch_stats/a/mean", False),
    ("params", "params/a/bias", True),
    ("body/layer_[01]/**", "params/body/layer_1/kernel", True),
    ("body/layer_[01]", "params/body/layer_1/kernel", False),
    ("body/layer_?/**", "params/body/layer_10/kernel", False),
    ("re:.*/bias", "params/a/b/bias", True),
    ("re:bias", "params/a/bias", False),
    ("re:[^/]*/bias", "params/bias", False),
    ("re:params/a/.*", "params/a/bias", True),
    ("re:params/a/.*", "batch_stats/a/bias", False),
    ("re:batch_stats/.*", "batch_stats/a/mean", True),
]


@pytest.mark.parametrize(("pattern", "path", "matches"), TABLE)
def test_a_pattern_knows_levels_and_collections(pattern: str, path: str, matches: bool) -> None:
    assert PathPattern(pattern).matches(tuple(path.split("/"))) is matches


def test_a_key_that_holds_a_slash_is_one_segment() -> None:
    path = ("params", "wn", "Dense_0/kernel")
    assert PathPattern(r"*/Dense_0\/kernel").matches(path)
    assert PathPattern("*/*").matches(path)
    assert not PathPattern("wn/Dense_0").matches(path)


def test_only_other_collections_are_shown() -> None:
    assert shown_name(("params", "a")) == "a"
    assert shown_name(("batch_stats", "a")) == "batch_stats/a"
