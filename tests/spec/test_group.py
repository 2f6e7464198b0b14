"""Groups as values: their names, what they say themselves, and what they inherit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError
from flaxtrain.params import selector
from flaxtrain.schedules import linear_schedule
from flaxtrain.spec import Group, OptSpec

FALL = linear_schedule(1.0, 0.0, 10)


@pytest.mark.parametrize(
    ("group", "label"),
    [
        (Group("head/**"), "head"),
        (Group("#bias"), "bias"),
        (Group("@LayerNorm"), "LayerNorm"),
        (Group("encoder/**/query"), "encoder_query"),
        (Group("#kernel & ~head"), "kernel_head"),
        (Group("**"), "group_4"),
        (Group(lambda fact: True), "group_4"),
        (Group(nn.LayerNorm), "LayerNorm"),
        (Group(["head", "#bias"]), "head_bias"),
        (Group("**", name="all-of.it"), "all-of.it"),
    ],
)
def test_the_name_is_made_from_the_selector(group: Group, label: str) -> None:
    assert group.label(4) == label


def test_a_group_prints_compares_and_copies_by_value() -> None:
    group = Group("head", lr_mult=10, weight_decay=np.float32(0.5), b1=0.5)
    assert repr(group) == "Group('head', lr_mult=10.0, weight_decay=0.5, b1=0.5)"
    assert group == Group(selector("head"), lr_mult=10, b1=jnp.float32(0.5), weight_decay=0.5)
    assert group != group.replace(lr_mult=5)
    assert group.replace(b1=0.5, lr_mult=10) == group
    assert copy.deepcopy(group) == pickle.loads(pickle.dumps(group)) == group
    assert group.own() == {"lr_mult": 10, "weight_decay": 0.5, "b1": 0.5}
    assert hash(group) == hash(copy.copy(group))


def test_what_a_group_does_not_say_is_inherited() -> None:
    spec = OptSpec(
        "adamw", 0.1, weight_decay=0.3, decay="all", decay_to="init", clip_norm=1.0, b1=0.5
    )
    merged, factor = spec.merged(Group("head", b2=0.7, lr_mult=2.0))
    assert factor == 2.0
    assert merged == OptSpec(
        "adamw", 0.1, weight_decay=0.3, decay="all", decay_to="init", b1=0.5, b2=0.7
    )
    own = {
        "learning_rate": 0.2,
        "weight_decay": 0.0,
        "decay": "ndim",
        "clip_norm": 3.0,
        "b1": 0,
    }
    merged, factor = spec.merged(Group("head", **own))
    assert factor == 1.0
    assert merged == OptSpec("adamw", decay_to="init", **own)


def test_another_optimizer_brings_its_own_defaults_and_keeps_the_learning_rate() -> None:
    spec = OptSpec("adamw", FALL, weight_decay=0.3, decay="all", b1=0.5)
    merged, _ = spec.merged(Group("head", optimizer="sgd", momentum=0.9))
    assert merged == OptSpec("sgd", FALL, decay="all", momentum=0.9)
    # The same optimizer said once more is no other one.
    merged, _ = spec.merged(Group("head", optimizer="adamw"))
    assert merged == spec


def test_an_object_inherits_nothing() -> None:
    spec = OptSpec("adamw", 0.1, weight_decay=0.3, decay="all", decay_to="init", b1=0.5)
    tx = optim.sgd(0.5)
    assert spec.merged(Group("head", optimizer=tx, clip_norm=2.0))[0] == OptSpec(
        tx, clip_norm=2.0
    )


@pytest.mark.parametrize(
    ("arguments", "rate", "factor"),
    [
        ({}, 0.1, 1.0),
        ({"lr_mult": 3.0}, 0.1, 3.0),
        ({"learning_rate": 0.5}, 0.5, 1.0),
        ({"learning_rate": 0.5, "lr_mult": 3.0}, 0.5, 3.0),
        ({"learning_rate": FALL}, FALL, 1.0),
        ({"schedule": FALL}, FALL, 1.0),
        ({"schedule": FALL, "lr_mult": 3.0}, FALL, 3.0),
        ({"schedule": FALL, "learning_rate": 0.5}, FALL, 0.5),
        ({"schedule": FALL, "learning_rate": 0.5, "lr_mult": 3.0}, FALL, 1.5),
    ],
)
def test_learning_rates_of_groups(arguments: dict[str, Any], rate: Any, factor: float) -> None:
    merged, found = OptSpec("sgd", 0.1).merged(Group("head", **arguments))
    assert (merged.learning_rate, found) == (rate, factor)


def test_durations_in_groups_are_resolved_with_the_spec() -> None:
    relative = linear_schedule(0.9, 0.5, "50%")
    tx = optim.sgd(relative)
    groups = [Group("head", schedule=relative, momentum=relative), Group("b", optimizer=tx)]
    ready = OptSpec("sgd", 0.1, groups=groups).resolve(Horizon(batches=20))
    fixed = linear_schedule(0.9, 0.5, 10)
    assert ready.groups[0] == Group("head", schedule=fixed, momentum=fixed)
    assert ready.groups[1].optimizer == optim.sgd(fixed)
    assert ready.resolve(Horizon()) is ready


@pytest.mark.usefixtures("unchecked_types")
def test_names_are_unique_and_default_is_taken() -> None:
    def spec(*groups: Group) -> OptSpec:
        return OptSpec("sgd", 0.1, groups=groups)

    with pytest.raises(ArgumentError, match="the name 'head' is that of group number 0"):
        spec(Group("head/**"), Group("head/*"))
    with pytest.raises(ArgumentError, match="the name 'default' is that of the rest"):
        spec(Group("head", name="default"))
    spec(Group("head/**"), Group("head/*", name="again"))
