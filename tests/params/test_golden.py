"""The tables of models, written in `tests/golden/params` and read row by row.

`-` stands for none: no axes, no shape (a single number), no depth, no module around.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flaxtrain.params import Facts, decay_mask, param_facts
from flaxtrain.tree import flatten
from tests.models import example
from tests.params.models import KINDS

TABLES = Path(__file__).parents[1] / "golden" / "params"
COLUMNS = "path class role local shape axes decay depth uses around"


def written(name: str) -> list[list[str]]:
    lines = (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def found(facts: Facts) -> list[list[str]]:
    decayed = flatten(decay_mask(facts))
    rows = [COLUMNS.split()]
    for fact in facts.by_depth():
        local, shape = ("x".join(map(str, sizes)) for sizes in (fact.local_shape, fact.shape))
        axes = ",".join(map(str, fact.lifted_axes))
        decay = "yes" if decayed[fact.path] else "no"
        depth = "" if fact.depth is None else str(fact.depth)
        around = ".".join(cls.__name__ for cls in fact.around)
        row = [fact.name, fact.owner_name, fact.role, local, shape, axes, decay, depth]
        rows.append([cell or "-" for cell in [*row, str(fact.uses), around]])
    return rows


@pytest.mark.parametrize("name", ["MLP", "CNN", "ResNet", "ViT", "GPT", "LSTM"])
def test_the_facts_are_those_written_by_hand(name: str) -> None:
    model, inputs = example(name)
    flags = {} if name == "MLP" else {"train": True}
    assert found(param_facts(model, inputs, **flags)) == written(name)


@pytest.mark.parametrize("name", KINDS)
def test_the_facts_of_other_kinds_of_models_are_those_written(name: str) -> None:
    facts = KINDS[name]()
    assert found(facts) == written(name)
    assert all(fact.resolved for fact in facts.params)


def test_every_table_has_its_model() -> None:
    names = {"MLP", "CNN", "ResNet", "ViT", "GPT", "LSTM", *KINDS}
    assert {path.stem for path in TABLES.iterdir()} == names
