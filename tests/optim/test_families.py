"""adam, sgd, scale, weight_decay, clip, apply: what the table of laws does not say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from flaxtrain.errors import ParameterError

GRADS = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}


def updates_of(tx: Any, grads: Any, params: Any = None) -> Any:
    return tx.update(grads, tx.init(grads), params)[0]


def test_the_first_step_of_adam_is_the_learning_rate_in_the_direction_of_the_sign() -> None:
    updates = updates_of(optim.adam(0.1), jnp.array([1e-3, -5.0]))
    # 1 - 0.999 in float32 is off by 1.3e-5, and its root by half of that.
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=2e-5)


def test_a_complex_slot_keeps_its_imaginary_part_whatever_its_dtype() -> None:
    tx = optim.scale_by_adam(mu_dtype=jnp.bfloat16)
    z = jnp.array([2j, 1.0 + 0j])
    updates, state = tx.update(z, tx.init(z))
    assert state.mu.dtype == jnp.complex64
    np.testing.assert_allclose(updates, [1j, 1.0], atol=2e-5)


def test_momentum_zero_keeps_a_trace_and_none_does_not() -> None:
    assert jax.tree.leaves(optim.sgd(0.1).init(GRADS)) == []
    assert len(jax.tree.leaves(optim.sgd(0.1, momentum=0.0).init(GRADS))) == 2


def test_a_constant_gradient_with_momentum_sums_to_a_geometric_series() -> None:
    tx = optim.trace(0.5)
    state = tx.init(1.0)
    for expected in (1.0, 1.5, 1.75):
        updates, state = tx.update(1.0, state)
        assert updates == expected


def test_a_schedule_sees_the_number_of_updates_already_applied() -> None:
    tx, seen = optim.sgd(lambda count: count + 1.0), []
    state = tx.init(1.0)
    for _ in range(3):
        updates, state = tx.update(jnp.float32(1.0), state)
        seen.append(float(updates))
    assert seen == [-1.0, -2.0, -3.0] and state[1].count == 3


def test_flip_sign_and_none_of_scale_by_learning_rate() -> None:
    assert updates_of(optim.scale_by_learning_rate(0.5, flip_sign=False), 2.0) == 1.0
    rising = optim.scale_by_learning_rate(lambda count: 0.5, flip_sign=False)
    assert updates_of(rising, 2.0) == 1.0
    assert updates_of(optim.scale_by_learning_rate(None), 2.0) == 2.0


def test_a_static_decay_of_zero_leaves_the_very_arrays() -> None:
    assert updates_of(optim.add_decayed_weights(0.0), GRADS, GRADS) is GRADS
    assert updates_of(optim.add_decayed_weights(jnp.float32(0.0)), GRADS, GRADS) is not GRADS


def test_a_scheduled_decay_has_its_own_count() -> None:
    tx = optim.add_decayed_weights(lambda count: 1.0 * count)
    state = tx.init(0.0)
    for count in (0, 1, 2):
        assert state == optim.WeightDecaySchedule(count)
        updates, state = tx.update(1.0, state, 10.0)
        assert updates == 1.0 + 10.0 * count


def test_the_joint_norm_is_clipped_with_the_direction_kept() -> None:
    updates = updates_of(optim.clip_by_global_norm(1.0), GRADS)
    # Norm 5; the factor 1/5 is rounded once and each product once.
    np.testing.assert_allclose(updates["a"], [0.6, 0.0], rtol=2e-7)
    np.testing.assert_allclose(updates["b"], [[0.8]], rtol=2e-7)


def test_a_norm_below_the_limit_leaves_every_bit() -> None:
    updates = updates_of(optim.clip_by_global_norm(5.01), GRADS)
    jax.tree.map(np.testing.assert_array_equal, updates, GRADS)


def test_nan_poisons_all_and_infinity_zeroes_the_others() -> None:
    poisoned = updates_of(optim.clip_by_global_norm(1.0), {"a": jnp.nan, "b": jnp.ones(2)})
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(poisoned))
    infinite = updates_of(optim.clip_by_global_norm(1.0), {"a": jnp.inf, "b": jnp.ones(2)})
    assert jnp.isnan(infinite["a"]) and jnp.all(infinite["b"] == 0)


def test_the_norm_counts_both_parts_of_complex_entries() -> None:
    updates = updates_of(optim.clip_by_global_norm(1.0), jnp.array([3.0 + 4.0j]))
    np.testing.assert_allclose(updates, [0.6 + 0.8j], rtol=2e-7)


def test_updates_are_added_in_the_wider_dtype_and_rounded_once() -> None:
    params = {"low": jnp.ones(1, jnp.bfloat16), "int": jnp.array([1]), "none": None}
    updates = {"low": jnp.array([2.0**-9 + 2.0**-10]), "int": jnp.array([0.5]), "none": None}
    new = optim.apply_updates(params, updates)
    # The bfloat16 step at 1 is 2^-7, its half 2^-8: 0.75 halves are lost, as they must be.
    assert new["low"].dtype == jnp.bfloat16 and new["low"] == 1
    assert new["int"].dtype == jnp.int32 and new["none"] is None
    more = optim.apply_updates(params, updates | {"low": jnp.array([2.0**-8 + 2.0**-10])})
    assert more["low"] == 1 + 2.0**-7


def test_a_missing_update_leaves_the_parameter() -> None:
    new = optim.apply_updates({"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": 1.0, "b": None})
    assert new["a"] == 2 and new["b"] == 1


def test_updates_of_another_tree_are_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"missing \['b'\], unexpected \['c'\]"):
        optim.apply_updates({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
