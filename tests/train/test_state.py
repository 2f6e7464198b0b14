"""The training state has the field names and methods of flax's, and works with optax too."""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState as FlaxState

import flaxtrain as ft
from flaxtrain.tree import flatten, split

PARAMS = {"a": {"kernel": jnp.array([[1.0, 2.0]])}, "b": {"bias": jnp.array([3.0])}}
GRADS = {"a": {"kernel": jnp.array([[0.5, -0.5]])}, "b": {"bias": jnp.array([2.0])}}
KERNEL = frozenset({("a", "kernel")})


def created(tx: Any, **kwargs: Any) -> ft.TrainState:
    return ft.TrainState.create(apply_fn=nn.Dense(2).apply, params=PARAMS, tx=tx, **kwargs)


def assert_equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("tx", [ft.optim.adam(0.1), optax.adam(0.1)], ids=["ours", "optax"])
def test_updates_are_those_of_flaxs_own_state(tx: Any) -> None:
    flaxs = FlaxState.create(apply_fn=nn.Dense(2).apply, params=PARAMS, tx=tx)
    ours = created(tx)
    for _ in range(3):
        flaxs = flaxs.apply_gradients(grads=GRADS)
        ours = ours.apply_gradients(grads=GRADS)
    assert_equal(ours.params, flaxs.params)
    assert_equal(ours.opt_state, flaxs.opt_state)
    assert int(ours.step) == int(flaxs.step) == 3


def test_it_begins_at_zero_with_nothing_counted() -> None:
    state = created(ft.optim.sgd(0.1), rng=7)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert all(int(counter) == 0 for counter in jax.tree.leaves(state.counters))
    assert state.collections == {} and state.trainable is None
    assert jax.random.key_data(state.rng).tolist() == [0, 7]


def test_a_typed_key_is_kept_as_it_is() -> None:
    key = jax.random.key(3)
    assert created(ft.optim.sgd(0.1), rng=key).rng is key


@pytest.mark.parametrize("pruned", [True, False])
def test_frozen_parameters_stay_whether_or_not_their_gradients_come(pruned: bool) -> None:
    state = created(ft.optim.sgd(0.1, momentum=0.9), trainable=KERNEL)
    assert set(flatten(state.split_params()[1])) == {("b", "bias")}
    grads = split(GRADS, KERNEL)[0] if pruned else GRADS
    after = state.apply_gradients(grads=grads)
    np.testing.assert_allclose(after.params["a"]["kernel"], [[0.95, 2.05]], rtol=1e-6)
    assert after.params["b"]["bias"] is PARAMS["b"]["bias"]
    # The optimizer keeps slots for what it trains only: the momentum of one kernel.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2


def test_further_fields_are_replaced_with_the_update() -> None:
    state = created(ft.optim.sgd(0.1), collections={"batch_stats": {"mean": jnp.zeros(2)}})
    after = state.apply_gradients(
        grads=GRADS, collections={"batch_stats": {"mean": jnp.ones(2)}}
    )
    assert after.collections["batch_stats"]["mean"].tolist() == [1, 1]
    assert state.replace(step=jnp.asarray(5)).step == 5 and int(state.step) == 0


def test_a_subclass_has_fields_of_its_own() -> None:
    class WithAverage(ft.TrainState):
        average: Any = None

    state = WithAverage.create(
        apply_fn=None, params=PARAMS, tx=ft.optim.sgd(0.1), average=PARAMS
    )
    after = jax.jit(lambda s: s.apply_gradients(grads=GRADS, average=GRADS))(state)
    assert isinstance(after, WithAverage) and int(after.step) == 1
    assert_equal(after.average, GRADS)


def test_what_is_static_is_no_leaf() -> None:
    state = created(ft.optim.sgd(0.1))
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    # step, two parameters, the key and six counters; plain SGD has no state.
    assert len(leaves) == 1 + 2 + 1 + 6


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optax.inject_hyperparams(optax.sgd)(learning_rate=0.25), 0.25),
        (optax.sgd(0.25), None),
    ],
    ids=["injected", "hidden"],
)
def test_learning_rates_of_optax_are_known_where_its_state_holds_them(
    tx: Any, expected: float | None
) -> None:
    rates = created(tx).apply_gradients(grads=GRADS).learning_rates
    known = [float(rate) for rate in rates.values() if rate is not None]
    assert known == ([] if expected is None else [expected])


def test_the_learning_rate_is_that_of_the_update_that_was_made() -> None:
    schedule = ft.schedules.linear_schedule(0.5, 0.0, 5)
    batch = {"x": np.ones((4, 2), np.float32), "target": np.ones((4, 1), np.float32)}
    recipe = ft.make_recipe(nn.Dense(1), ft.OptSpec("sgd", schedule), batch)
    state = recipe.init(0)
    seen = []
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, state.params)
        state = state.apply_gradients(grads=grads)
        seen.append(float(state.learning_rates["default"]))  # type: ignore[arg-type]
    assert seen == pytest.approx([0.5, 0.4, 0.3], rel=1e-6)  # float32


def test_gradients_of_another_structure_are_refused() -> None:
    state = created(ft.optim.sgd(0.1))
    with pytest.raises((ValueError, TypeError, KeyError)):
        state.apply_gradients(grads={"a": GRADS["a"]})


def test_params_stay_the_kind_of_tree_that_they_are() -> None:
    params = flax.core.freeze({"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}})
    state = ft.TrainState.create(
        apply_fn=None, params=params, tx=ft.optim.sgd(0.1), trainable=frozenset({("a", "w")})
    )
    after = state.apply_gradients(grads=params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert float(after.params["a"]["w"][0]) < 1.0 == float(after.params["b"]["w"][0])
