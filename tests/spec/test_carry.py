"""From one phase to the next: what is carried, and what can't be."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError
from flaxtrain.params import facts_from
from flaxtrain.spec import Freeze, Group, OptSpec, OptState, assign, carried, check_carries

PARAMS = {"a": {"w": jnp.ones((2, 3))}, "b": {"w": jnp.ones((2, 3))}}
FACTS = facts_from(lambda extra: {"params": PARAMS})
LATE = Freeze("a/**", start=5, slots="drop")


def state_of(count: int, rates: Any, numbers: Any, slots: Any) -> OptState:
    return OptState(count, rates, numbers, slots)


def test_old_slots_go_on_and_new_ones_are_fresh() -> None:
    fresh = state_of(0, {"default": 0.0}, {}, {"mu": {"a": 0.0, "b": 0.0}, "key": 1})
    old = state_of(7, {"default": 0.1}, {"default": {"b1": 0.8}}, {"mu": {"b": 2.0}, "key": 3})
    state = carried(fresh, old)
    assert state == state_of(
        7, {"default": 0.1}, {"default": {"b1": 0.8}}, {"mu": {"a": 0.0, "b": 2.0}, "key": 3}
    )


def test_learning_rates_have_the_names_of_the_new_phase() -> None:
    fresh, old = state_of(0, {"a": 0.0, "b": 0.0}, {}, {}), state_of(7, {"b": 0.1}, {}, {})
    assert carried(fresh, old).learning_rates == {"a": 0.0, "b": 0.1}


def test_an_array_of_another_shape_is_refused_by_name() -> None:
    fresh, old = (state_of(0, {}, {}, {"mu": jnp.zeros(size)}) for size in (4, 2))
    with pytest.raises(ArgumentError, match=r"'mu' .* has shape \(2,\) .* and \(4,\)"):
        carried(fresh, old)


def test_an_object_that_joins_parameters_is_refused_before_the_run() -> None:
    joined = optim.flatten(optim.adam(0.1))
    with pytest.raises(ArgumentError, match="joins parameters") as caught:
        check_carries(assign(OptSpec(joined, freeze=[LATE]), FACTS))
    assert "by name" in str(caught.value)
    # Frozen for the whole run, it sees the same parameters all the time.
    check_carries(assign(OptSpec(joined, freeze=["a/**"]), FACTS))


@pytest.mark.parametrize("optimizer", [optim.adam(0.1), optim.shampoo(0.1), optim.sm3(0.1)])
def test_other_objects_are_carried(optimizer: Any) -> None:
    check_carries(assign(OptSpec(optimizer, freeze=[LATE]), FACTS))


def test_an_object_can_not_keep_slots_of_frozen_parameters() -> None:
    keep = Freeze("a/**", start=3, slots="keep")
    with pytest.raises(ArgumentError, match="slots of 'a/w' are to be kept") as caught:
        assign(OptSpec(optim.adam(0.1), freeze=[keep]), FACTS)
    assert "slots='drop'" in str(caught.value)
    group = Group("b/**", optimizer=optim.sgd(0.1))
    table = assign(OptSpec("adam", 0.1, groups=[group], freeze=[keep]), FACTS)
    assert len(table.phases) == 2, "the object's own parameters are not frozen"
