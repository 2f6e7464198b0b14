"""Freeze rules as values, and their durations."""

from __future__ import annotations

import copy
from typing import Any

import flax.linen as nn
import pytest

from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError
from flaxtrain.params import selector
from flaxtrain.spec import Freeze, OptSpec


def test_a_freeze_prints_compares_and_copies_by_value() -> None:
    rule = Freeze("body/**", until="2ep", every=5, stats="update", mode="train")
    assert repr(rule) == (
        "Freeze('body/**', until='2ep', every=5, stats='update', mode='train')"
    )
    assert (
        rule
        == Freeze(selector("body/**"), "2ep", every=5, stats="update", mode="train")
        == copy.deepcopy(rule)
    )
    assert rule != rule.replace(every=6)
    assert Freeze(nn.LayerNorm).select == "@LayerNorm"


def test_selectors_alone_freeze_for_ever() -> None:
    for given in ("body", ["body"], ("body",), Freeze("body"), [Freeze("body")]):
        assert OptSpec("sgd", 0.1, freeze=given).freeze == (Freeze("body"),)
    both = OptSpec("sgd", 0.1, freeze=["body", Freeze("#bias", until=3)]).freeze
    assert both == (Freeze("body"), Freeze("#bias", until=3))


def test_every_duration_is_resolved() -> None:
    rule = Freeze("body", "50%", start="1ep", slots="keep", every="10%", rewarm="80 ex")
    horizon = Horizon(batches=100, batches_per_epoch=7, batch_size=8)
    ready = Freeze("body", 50, start=7, slots="keep", every=10, rewarm=10)
    assert rule.resolve(horizon) == ready
    spec = OptSpec("sgd", 0.1, freeze=rule)
    assert spec.resolve(horizon) == OptSpec("sgd", 0.1, freeze=ready)
    with pytest.raises(ArgumentError, match="number of batches in the run is not known yet"):
        spec.resolve(Horizon(batches_per_epoch=7, batch_size=8))
    with pytest.raises(ArgumentError, match="until=6 is not after start=7"):
        rule.replace(until="6%").resolve(horizon)


@pytest.mark.parametrize(
    "arguments",
    [
        {"until": 1},
        {"until": "1%", "every": 1, "order": "bottom_up"},
        {"start": 1, "slots": "drop"},
        {"start": "1ep", "until": 1, "slots": "keep", "rewarm": 3},
    ],
)
def test_values_at_the_edge_are_accepted(arguments: dict[str, Any]) -> None:
    rule = Freeze("body", **arguments)
    assert all(getattr(rule, name) == value for name, value in arguments.items())
