"""The table that a person reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flaxtrain.errors import ArgumentTypeError, ParameterError, UnknownNameError
from flaxtrain.params import Facts, ParamFact, overview, param_facts
from flaxtrain.params.overview import shape_text
from tests.models import MLP
from tests.params import models
from tests.params.models import ROW, facts_of_example

FACTS = param_facts(MLP((4, 2)), ROW)


def test_the_text_is_aligned_with_totals() -> None:
    table = overview(
        FACTS,
        decay="kernels",
        groups=lambda fact: "head" if fact.path[0] == "Dense_1" else "body",
        trainable=lambda fact: fact.path[0] == "Dense_1",
    )
    assert (
        str(table)
        == """\
path            class  role    shape  dtype    size  group  decay  trainable
Dense_0/kernel  Dense  kernel  8 x 4  float32    32  body   yes    no
Dense_0/bias    Dense  bias    4      float32     4  body   no     no
Dense_1/kernel  Dense  kernel  4 x 2  float32     8  head   yes    yes
Dense_1/bias    Dense  bias    2      float32     2  head   no     yes
4 parameters, 46 values, 184 B
decayed: 2 parameters, 40 values, 160 B
trainable: 2 parameters, 10 values, 40 B
frozen: 2 parameters, 36 values, 144 B"""
    )


def test_columns_that_nobody_gave_are_left_out() -> None:
    assert overview(FACTS).columns == ("path", "class", "role", "shape", "dtype", "size")
    assert overview(FACTS, decay="all").columns[-1] == "decay"
    assert "trainable" not in str(overview(FACTS, decay="all"))


def test_factors_and_times_are_texts() -> None:
    table = overview(
        FACTS,
        trainable=lambda fact: fact.path[0] == "Dense_1",
        lr_mult=lambda fact: "0.5..1" if fact.role == "kernel" else "1",
        when=lambda fact: "from step 60" if fact.name == "Dense_1/kernel" else "",
    )
    ends = [line[str(table).index("lr_mult") :] for line in str(table).splitlines()[:5]]
    assert ends == [
        "lr_mult  trainable",
        "0.5..1   no",
        "1        no",
        "0.5..1   from step 60",
        "1        yes",
    ]
    assert [row.trainable for row in table.rows] == [False, False, True, True]
    assert [row.when for row in table.rows] == ["", "", "from step 60", ""]


def test_the_rule_of_each_role_is_shown_on_request() -> None:
    table = overview(FACTS, decay="kernels")
    assert table.rows[0].rule == FACTS["Dense_0/kernel"].rule == "class Dense"
    assert "class Dense" not in str(table) + table.markdown()
    assert table.text(rules=True).splitlines()[1].endswith("yes    class Dense")
    assert table.markdown(rules=True).splitlines()[0].endswith("| decay | rule |")


def test_rows_hold_values() -> None:
    row = overview(FACTS, decay="kernels").rows[0]
    assert (row.path, row.owner, row.size, row.decay) == ("Dense_0/kernel", "Dense", 32, True)
    assert (row.group, row.trainable) == (None, None)


def test_markdown_is_a_table_with_the_same_rows() -> None:
    lines = overview(FACTS, decay="kernels").markdown().splitlines()
    assert lines[0] == "| path | class | role | shape | dtype | size | decay |"
    assert lines[1] == "|---|---|---|---|---|---:|---|"
    assert lines[2] == "| `Dense_0/kernel` | Dense | kernel | 8 x 4 | float32 | 32 | yes |"
    assert lines[6:] == [
        "",
        "4 parameters, 46 values, 184 B",
        "",
        "decayed: 2 parameters, 40 values, 160 B",
    ]


def test_rows_come_in_the_order_of_use() -> None:
    table = overview(param_facts(models.Setup(), models.SEQUENCE))
    assert table.rows[0].path == "pos_embedding"
    assert table.rows[-2].path == "head/bias"
    assert table.rows[-1].path == "unused"


def test_lifted_axes_are_in_brackets() -> None:
    facts = facts_of_example("GPT")
    assert shape_text(facts["blocks/up/kernel"]) == "[3] x 8 x 16"
    facts = param_facts(models.Mixture(axis=-1), models.SEQUENCE)
    assert shape_text(facts["experts/kernel"]) == "8 x 8 x [4]"
    assert shape_text(param_facts(models.Unwrapped(), ROW)["s"]) == "scalar"


def changed(index: int, **changes: Any) -> Facts:
    facts: list[ParamFact] = list(FACTS.params)
    facts[index] = dataclasses.replace(facts[index], **changes)
    return Facts(tuple(facts))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"resolved": False, "role": "other"}, "no module was seen declaring Dense_0/bias"),
        ({"role": "other"}, "role other: Dense_0/bias"),
        ({"uses": 0, "depth": None}, "dead, no training output depends on Dense_0/bias"),
        ({"uses": 3}, "tied, used in several places: Dense_0/bias"),
        ({}, None),
        ({"uses": None, "depth": None}, None),
    ],
)
def test_what_to_look_at_is_noted(changes: dict[str, Any], note: str | None) -> None:
    table = overview(changed(0, **changes))
    assert table.notes == (() if note is None else (note,))
    if note is not None:
        assert str(table).splitlines()[-1] == f"note: {note}"
        assert table.markdown().splitlines()[-1] == f"- {note}"


def test_a_long_list_in_a_note_is_cut() -> None:
    facts = facts_of_example("ViT")
    dead = Facts(tuple(dataclasses.replace(f, uses=0) for f in facts.params))
    assert overview(dead).notes[0].endswith(" and 35 more")


def test_the_total_has_the_memory() -> None:
    facts = Facts((dataclasses.replace(FACTS.params[0], shape=(256,)),))
    assert overview(facts).totals[0] == "1 parameter, 256 values, 1.0 KiB"


def test_wrong_columns_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="decay preset 'kernles'"):
        overview(FACTS, decay="kernles")
    with pytest.raises(ParameterError, match="4 missing") as caught:
        overview(FACTS, groups={})
    assert caught.value.where == "overview(facts, groups=)"
    with pytest.raises(ArgumentTypeError, match="1 is an int, not a str"):
        overview(FACTS, groups=lambda fact: 1)
    with pytest.raises(ArgumentTypeError, match="not a bool"):
        overview(FACTS, trainable=lambda fact: "yes")
    with pytest.raises(ArgumentTypeError, match="not a str") as caught:
        overview(FACTS, lr_mult=lambda fact: 0.5)
    assert str(caught.value.where).startswith("overview(facts, lr_mult=)")
    with pytest.raises(ArgumentTypeError, match="not a str"):
        overview(FACTS, when=lambda fact: True)


def test_an_empty_table_is_printed() -> None:
    assert str(overview(Facts(()))).splitlines()[-1] == "0 parameters, 0 values, 0 B"
