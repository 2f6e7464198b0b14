"""The tables of six models, written by hand in `tests/golden/params` and read row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from flaxtrain.params import Facts, decay_mask, param_facts
from flaxtrain.tree import flatten
from tests.models import example

TABLES = Path(__file__).parents[1] / "golden" / "params"


def written(name: str) -> list[list[str]]:
    lines = (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def found(facts: Facts) -> list[list[str]]:
    decayed = flatten(decay_mask(facts))
    rows = [["path", "class", "role", "local", "shape", "decay", "depth", "uses"]]
    for fact in facts.by_depth():
        local, shape = ("x".join(map(str, sizes)) for sizes in (fact.local_shape, fact.shape))
        decay = "yes" if decayed[fact.path] else "no"
        order = [str(fact.depth), str(fact.uses)]
        rows.append([fact.name, fact.owner_name, fact.role, local, shape, decay, *order])
    return rows


@pytest.mark.parametrize("name", ["MLP", "CNN", "ResNet", "ViT", "GPT", "LSTM"])
def test_the_facts_are_those_written_by_hand(name: str) -> None:
    model, inputs = example(name)
    flags = {} if name == "MLP" else {"train": True}
    assert found(param_facts(model, inputs, **flags)) == written(name)
