"""The lift: counts, structure, None, missing parameters, stored dtypes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ParameterError
from flaxtrain.optim.sgd import GradientDescent
from flaxtrain.typing import Array
from tests.oracles.adam import adam

PARAMS = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(3)}}


@optim.rule
class StepTimesParam(optim.Rule):
    """Uses everything a rule can be given: the step, the parameter, no slots."""

    factor: Any = 1.0

    Slots = optim.NoSlots
    needs_params = True

    def init(self, param: Array) -> optim.NoSlots:
        return optim.NoSlots()

    def scalars(self, t: Array) -> Array:
        return t

    def update(
        self, grad: Array, slots: optim.NoSlots, param: Array | None, scalars: Array
    ) -> tuple[Array, optim.NoSlots]:
        assert param is not None
        return self.factor * scalars * param + 0 * grad, slots


class OnlyCount(NamedTuple):
    count: Any


class Nothing(NamedTuple):
    pass


@pytest.mark.parametrize("jit", [True, False])
def test_rules_see_t_from_one_on_and_the_state_counts_updates(jit: bool) -> None:
    tx = optim.per_leaf(StepTimesParam(2.0), state=OnlyCount)
    update, state = jax.jit(tx.update) if jit else tx.update, tx.init(PARAMS)
    assert state == OnlyCount(0) and state.count.dtype == jnp.int32
    for t in (1, 2, 3):
        updates, state = update(PARAMS, state, PARAMS)
        assert state.count == t
        np.testing.assert_array_equal(updates["b"]["c"], 2.0 * t * np.ones(3))


def test_the_count_stays_at_the_largest_integer() -> None:
    tx = optim.scale_by_adam()
    state = tx.init(PARAMS)._replace(count=jnp.int32(2**31 - 1))
    for _ in range(2):
        updates, state = tx.update(PARAMS, state)
    assert state.count == 2**31 - 1 and state.count.dtype == jnp.int32
    assert jnp.all(jnp.isfinite(updates["a"]))


def test_missing_parameters_are_named() -> None:
    tx = optim.per_leaf(StepTimesParam(), state=OnlyCount)
    with pytest.raises(ParameterError, match="StepTimesParam needs the parameters") as caught:
        tx.update(PARAMS, tx.init(PARAMS))
    assert "update(updates, state, params)" in str(caught.value.fix)


@pytest.mark.parametrize("state", [Nothing, optim.TraceState])
def test_a_state_without_the_fields_of_the_rule_is_refused(state: Any) -> None:
    with pytest.raises(ArgumentError, match=r"StepTimesParam needs \('count',\)"):
        optim.per_leaf(StepTimesParam(), state=state)


def test_something_else_than_a_rule_is_refused(unchecked_types: None) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a Rule"):
        optim.per_leaf(optax.adam(0.1), state=OnlyCount)  # type: ignore[arg-type]


def test_gradients_of_another_structure_are_named() -> None:
    tx = optim.trace(0.9)
    with pytest.raises(ParameterError, match="different structure") as caught:
        tx.update({"a": jnp.ones((2, 3))}, tx.init(PARAMS))
    assert "missing gradients ['b/c']" in str(caught.value)


@pytest.mark.parametrize("tx", [optim.trace(0.5), optim.scale_by_adam()], ids=repr)
def test_a_gradient_that_is_none_keeps_the_slots_of_its_parameter(tx: Any) -> None:
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    updates, after = tx.update({"a": PARAMS["a"], "b": {"c": None}}, state)
    assert updates["b"]["c"] is None
    assert jax.tree.structure(after) == jax.tree.structure(state)
    slot = "trace" if hasattr(state, "trace") else "mu"
    np.testing.assert_array_equal(
        getattr(after, slot)["b"]["c"], getattr(state, slot)["b"]["c"]
    )
    assert not np.array_equal(getattr(after, slot)["a"], getattr(state, slot)["a"])


def test_a_rule_without_slots_gives_no_arrays() -> None:
    slots = optim.init_slots(GradientDescent(), PARAMS)
    assert jax.tree.leaves(slots) == []
    updates, slots = optim.update_slots(GradientDescent(), None, PARAMS, slots)
    assert updates["a"] is PARAMS["a"] and slots == optim.NoSlots()


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_state_dtype_stores_slots_in_it_and_computes_in_float32(stored: Any) -> None:
    params = {"w": jnp.ones(4, jnp.bfloat16), "z": jnp.ones(2, jnp.complex64)}
    tx = optim.scale_by_adam(state_dtype=stored)
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state)
    for moments in (state.mu, state.nu, after.mu, after.nu):
        assert moments["w"].dtype == stored and moments["z"].dtype == jnp.complex64
    assert updates["w"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_float32_moments_of_bfloat16_gradients_are_closer_to_the_truth_than_bfloat16_ones() -> (
    None
):
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(50, 64)), jnp.bfloat16)
    exact = np.asarray(grads, np.float64)
    path = adam(np.zeros(64), exact, learning_rate=lambda step: 1.0)
    truth = path[-2] - path[-1]

    def error(tx: Any) -> float:
        state = tx.init(grads[0])
        for grad in grads:
            updates, state = tx.update(grad, state)
        return float(np.max(np.abs(np.asarray(updates, np.float64) - truth)))

    assert error(optim.scale_by_adam(state_dtype="float32")) < 2e-5
    assert error(optim.scale_by_adam()) > 1e-3


def test_integer_counters_are_incremented_in_their_own_dtype() -> None:
    assert optim.safe_increment(jnp.uint8(255)) == 255
    assert optim.safe_increment(np.int64(3)).dtype == jnp.asarray(np.int64(3)).dtype
    assert optim.safe_increment(jnp.float32(1.5)) == 2.5
