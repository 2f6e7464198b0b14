"""The spike rule and the limit of skips as parts of a spec."""

from __future__ import annotations

from typing import Any

import pytest

from flaxtrain import OptSpec, Spikes
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from tests.runs import refused

RULES = [
    Spikes(),
    Spikes(4.5, window=32, of="loss", warmup=1000),
    Spikes(window=64, warmup="5%"),
    Spikes(3, warmup="2ep"),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_prints_as_its_call_and_goes_through_json(rule: Spikes) -> None:
    assert eval(repr(rule), {"Spikes": Spikes}) == rule
    spec = OptSpec("adam", 0.1, nonfinite="skip", max_skips=None, spikes=rule)
    assert OptSpec.from_json(spec.to_json()) == spec
    assert OptSpec.from_json(spec.to_json()).spikes == rule
    assert spec != spec.replace(spikes=None) and spec != spec.replace(max_skips=10)
    assert [other for other in RULES if other == rule] == [rule]


def test_the_warmup_is_resolved_with_the_spec() -> None:
    spec = OptSpec("adam", 0.1, spikes=Spikes(warmup="5%"))
    found = spec.resolve(Horizon(batches=1000)).spikes
    assert found == Spikes(warmup=50) and found is not None and found.first_judged == 50
    short = spec.resolve(Horizon(batches=20)).spikes
    assert short is not None and short.first_judged == 3
    assert Spikes(window=40).first_judged == 40
    refused(lambda: spec.resolve(Horizon()), ArgumentError, "5%")
    refused(lambda: Spikes(warmup="5%").first_judged, ArgumentError, "5%")


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_values_are_refused() -> None:
    make: Any = Spikes
    refused(lambda: make(z=0), ArgumentError, "z=0")
    refused(lambda: make(z=float("nan")), ArgumentError, "z=nan")
    refused(lambda: make(z="6"), ArgumentTypeError, "z='6'")
    refused(lambda: make(window=2), ArgumentError, "window=2")
    refused(lambda: make(window=16.0), ArgumentTypeError, "window=16.0")
    refused(lambda: make(of="los"), UnknownNameError, "los")
    refused(lambda: make(warmup=2), ArgumentError, "warmup=2")
    refused(lambda: make(warmup="soon"), ArgumentError, "soon")
    refused(lambda: make(windw=16), ArgumentTypeError, "windw")
    spec: Any = OptSpec
    refused(lambda: spec("sgd", 0.1, max_skips=0), ArgumentError, "max_skips=0")
    refused(lambda: spec("sgd", 0.1, max_skips=2.5), ArgumentTypeError, "max_skips=2.5")
    refused(lambda: spec("sgd", 0.1, max_skips=True), ArgumentTypeError, "max_skips=True")
    refused(lambda: spec("sgd", 0.1, spikes=6.0), ArgumentTypeError, "spikes=6.0")
    refused(lambda: spec("sgd", 0.1, spikes=Spikes), ArgumentTypeError, "spikes=")
