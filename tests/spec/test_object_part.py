"""Optimizer objects in groups and phases: what they can't do is refused by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError
from flaxtrain.spec import Freeze, Group, OptSpec, assign, build, carried, transformation
from flaxtrain.tree import split
from tests.spec.small import draw, net_facts

RATE = 0.1


@pytest.mark.parametrize(
    "rules",
    [
        (Freeze("body", until=5),),
        (Freeze("body", start=3, until=5, slots="drop"),),
        (Freeze("body | embed", until=5, every=5),),
    ],
    ids=["late", "again", "gradual"],
)
@pytest.mark.parametrize(
    "optimizer", [optim.adam(RATE), optax.adam(RATE)], ids=["our", "optax"]
)
def test_parameters_do_not_thaw_beside_others_of_one_object(optimizer: Any, rules: Any) -> None:
    with pytest.raises(ArgumentError, match=r"thaws at step \d+") as caught:
        build(OptSpec(optimizer, freeze=rules), net_facts())
    assert "an object of its own" in str(caught.value.fix)


def test_what_thaws_at_once_in_a_group_of_its_own_starts_at_the_first_update() -> None:
    spec = OptSpec(
        optim.adam(RATE),
        groups=[Group("body", optimizer=optim.adam(RATE))],
        freeze=[Freeze("body", until=5000)],
    )
    table, params = assign(spec, net_facts()), draw(0)
    before, after = (transformation(table, phase) for phase in table.phases)
    part = split(params, table.phases[0].with_slots)[0]
    state = before.init(part)
    _, state = jax.jit(before.update)(
        split(draw(1), table.phases[0].with_slots)[0], state, part
    )
    state = carried(after.init(params), state)
    updates, _ = jax.jit(after.update)(draw(2), state, params)
    # Adam's first update has the length of the learning rate in every entry, up to eps / |g|.
    np.testing.assert_allclose(np.abs(updates["body"]["kernel"]), RATE, rtol=1e-3)


def test_the_rate_of_a_frozen_object_is_zero() -> None:
    groups = [Group("body", optimizer=optim.sgd(0.3))]
    tx = build(OptSpec("sgd", RATE, groups=groups, freeze=["body"]), net_facts())
    params = split(draw(0), set(net_facts()) - {("body", "kernel"), ("body", "bias")})[0]
    _, state = tx.update(params, tx.init(params), params)
    rates = {name: float(rate) for name, rate in state.learning_rates.items()}
    assert rates == {"body": 0.0, "default": pytest.approx(RATE)}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"layer_decay": 0.5}, "layer_decay"),
        ({"freeze": [Freeze("body", until=4, rewarm=2)]}, r"Freeze\(rewarm=...\)"),
    ],
)
def test_what_multiplies_a_rate_does_not_go_with_an_object(changes: Any, name: str) -> None:
    groups = [Group("body", optimizer=optim.sgd(0.3))]
    with pytest.raises(ArgumentError, match=f"{name} does not go with") as caught:
        build(OptSpec("sgd", RATE, groups=groups, **changes), net_facts())
    assert "group 'body'" in str(caught.value.where)


def test_a_fixed_mask_that_holds_frozen_parameters_is_refused() -> None:
    mask = net_facts().tree(lambda fact: fact.role == "kernel")
    for tx in (optax.masked(optax.adam(1.0), mask), optim.masked(optim.adam(1.0), mask)):
        with pytest.raises(ArgumentError, match="can't do with the") as caught:
            build(OptSpec(tx, freeze=["body"]), net_facts())
        assert "as functions of the params" in str(caught.value.fix)
    by_function = optax.masked(optax.adam(1.0), lambda params: jax.tree.map(jnp.ndim, params))
    build(OptSpec(by_function, freeze=["body"]), net_facts())
