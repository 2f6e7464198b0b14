from __future__ import annotations

import re

from flaxtrain.params.restore_report import RestoreRecord, RestoreReport, likely_renames

KERNEL = RestoreRecord("body/a|b/kernel", "float32[2,3]", "enc/kernel", "float64[2,3]")
BIAS = RestoreRecord("body/bias", "float32[3]", "body/bias", "float32[3]")
HEAD = RestoreRecord("head/kernel", "float32[3,5]")
LOST = RestoreRecord("old/kernel", "", "old/kernel", "float32[7]")
REPORT = RestoreReport(
    loaded=(KERNEL, BIAS),
    renamed=(KERNEL,),
    cast=(KERNEL,),
    missing=(HEAD,),
    unused=(LOST,),
    ignored=("opt_state", "step"),
    source="/ckpt/500",
)


def test_the_table_has_a_row_for_every_array_and_says_what_was_done() -> None:
    assert str(REPORT).splitlines() == [
        "loaded 2 arrays from /ckpt/500 (1 renamed, 1 cast), missing 1, unused 1",
        "outcome                path             array         source      in the source",
        "loaded, renamed, cast  body/a|b/kernel  float32[2,3]  enc/kernel  float64[2,3]",
        "loaded                 body/bias        float32[3]    body/bias   float32[3]",
        "missing                head/kernel      float32[3,5]",
        "unused                 old/kernel                     old/kernel  float32[7]",
        "note: not looked at, parts of a training state: opt_state, step",
    ]


def test_markdown_escapes_what_would_end_a_cell() -> None:
    lines = REPORT.markdown().splitlines()
    assert lines[2:4] == [
        "| outcome | path | array | source | in the source |",
        "|" + "---|" * 5,
    ]
    row = r"| loaded, renamed, cast | `body/a\|b/kernel` | float32[2,3] | `enc/kernel` |"
    assert lines[4] == row + " float64[2,3] |"
    assert lines[-1].endswith("opt_state, step")


def paths(*names: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {tuple(name.split("/")): (2,) for name in names}


def test_the_prefix_that_most_pairs_agree_on_comes_first() -> None:
    missing = paths("params/b/x/w", "params/b/y/w", "params/norm/scale")
    unused = paths("params/a/x/w", "params/a/y/w", "params/ln/scale")
    assert likely_renames(missing, unused) == {"a/(.*)": r"b/\1", "ln/(.*)": r"norm/\1"}


def test_a_level_more_or_less_is_recognized() -> None:
    assert likely_renames(paths("params/m/x/w"), paths("params/x/w")) == {"(.*)": r"m/\1"}
    assert likely_renames(paths("params/x/w"), paths("params/m/x/w")) == {"m/(.*)": r"\1"}


def test_a_level_that_only_some_modules_lack_is_added_to_these() -> None:
    missing = paths("params/m/x/w", "params/m/y", "params/m/z.1/w")
    unused = paths("params/x/w", "params/y", "params/z.1/w")
    (entry,) = likely_renames(missing, unused, others=True).items()
    assert entry == (r"((?:x|y|z\.1)(?:/.*)?)", r"m/\1")
    expression = re.compile(entry[0])
    assert all(expression.fullmatch("/".join(path[1:])) for path in unused)
    assert not expression.fullmatch("head/w")


def test_other_shapes_other_collections_and_other_names_are_not_taken_for_the_same() -> None:
    missing = paths("params/b/w")
    assert likely_renames(missing, {("params", "a", "w"): (3,)}) == {}
    assert likely_renames(missing, paths("batch_stats/a/w")) == {}
    assert likely_renames(missing, paths("params/a/v")) == {}
