"""Shardings as values."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import pytest
from jax.sharding import PartitionSpec

from flaxtrain.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from flaxtrain.parallel import Sharding, abstract_mesh

HYBRID = abstract_mesh({"data": 2, "fsdp": 4}, 8)


@pytest.mark.parametrize(
    "sharding",
    [
        Sharding(),
        Sharding("zero1", min_size=0),
        Sharding("fsdp", rules=[("head/**", (None, "model")), ("@Embed", ())]),
        Sharding(rules=[("#kernel", [None, ("data", "model")])]),
        Sharding(logical={"mlp": "model", "embed": None}),
    ],
    ids=repr,
)
def test_it_prints_as_the_call_that_makes_an_equal_one(sharding: Sharding) -> None:
    assert eval(repr(sharding)) == sharding
    assert hash(eval(repr(sharding))) == hash(sharding)


def test_equal_choices_are_equal_however_they_are_written() -> None:
    written = Sharding(rules=[(nn.Embed, PartitionSpec(None, "model"))])
    assert written == Sharding(rules=(("@Embed", (None, "model")),))
    assert Sharding(logical={"mlp": "model"}) == Sharding(logical=[("mlp", "model")])
    assert written != Sharding(rules=(("@Embed", ("model", None)),))


def test_it_is_frozen_and_copied_with_changes() -> None:
    sharding = Sharding("fsdp", min_size=10)
    assert sharding.replace(kind="zero1") == Sharding("zero1", min_size=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sharding.kind = "zero1"


def test_without_a_choice_an_axis_fsdp_of_more_than_one_device_decides() -> None:
    assert Sharding.of(None, HYBRID) == Sharding("fsdp")
    for mesh in (abstract_mesh({"data": 8}, 8), abstract_mesh({"data": 8, "fsdp": 1}, 8)):
        assert Sharding.of(None, mesh) == Sharding("replicated")
    assert Sharding.of("zero1", HYBRID) == Sharding("zero1")
    own = Sharding("fsdp", min_size=1)
    assert Sharding.of(own, HYBRID) is own


def test_a_misspelt_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fsdp'"):
        Sharding("fsdq")
    with pytest.raises(UnknownNameError, match="did you mean 'zero1'"):
        Sharding.of("zero", HYBRID)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"min_size": -1}, "min_size=-1"),
        ({"rules": [("a", ("model", "model"))]}, "'model' stands there twice"),
        ({"rules": [("a", (("data", "model"), "data"))]}, "'data' stands there twice"),
        ({"logical": [("mlp", "model"), ("mlp", None)]}, "'mlp' stands there twice"),
        ({"rules": [("a &", ())]}, "a &"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Sharding("fsdp", **arguments)
    assert found in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"min_size": 1.5}, "not an integer"),
        ({"rules": 3}, "3 is no pair"),
        ({"rules": "head"}, "'head' is no pair"),
        ({"rules": [("head", (None,), 3)]}, "is no pair"),
        ({"rules": [("head", "model")]}, "a str, not a tuple with an entry for each axis"),
        ({"rules": [("head", (3,))]}, "3 is an int"),
        ({"rules": [("head", ((3,),))]}, "(3,) is a tuple"),
        ({"rules": [(3, ())]}, "3 is an int"),
        ({"logical": [(3, "model")]}, "3 is an int"),
        ({"logical": {"mlp": 3}}, "3 is an int"),
    ],
)
def test_values_of_another_type_are_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(ArgumentTypeError) as error:
        Sharding(**arguments)
    assert found in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_sharding_is_refused() -> None:
    choice: Any = ("fsdp",)
    with pytest.raises(ArgumentTypeError, match="not a Sharding"):
        Sharding.of(choice, HYBRID)
