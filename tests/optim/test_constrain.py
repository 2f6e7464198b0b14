"""Constraints and normalised updates: what the table of laws does not say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, ParameterError
from tests.runs import refused

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (
        lambda: optim.normalize_by_update_norm(math.inf),
        ArgumentError,
        "scale_factor=inf",
    ),
    (
        lambda: optim.normalize_by_update_norm("1"),
        ArgumentTypeError,
        "scale_factor='1'",
    ),
    (lambda: optim.normalize_by_update_norm(eps=-1e-6), ArgumentError, "eps=-1e-06"),
    (lambda: optim.centralize(output_axis=1), ArgumentError, "output_axis=1"),
    (lambda: optim.centralize(output_axis=0.5), ArgumentTypeError, "output_axis=0.5"),
    (lambda: optim.centralize(-1), ArgumentTypeError, "positional"),
    (lambda: optim.zero_nans(1), ArgumentTypeError, "positional"),
    (lambda: optim.keep_params_nonnegative(0.0), ArgumentTypeError, "positional"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


def updates_of(tx: Any, grads: Any, params: Any = None) -> Any:
    return tx.update(grads, tx.init(grads), params)[0]


def test_parameters_stop_at_zero_and_are_free_above_it() -> None:
    params = {"a": jnp.array([1.0, 1.0, 0.0, -3.0]), "none": None, "float": 2.0}
    updates = {"a": jnp.array([-0.5, -2.0, -0.0, 1.0]), "none": None, "float": -5.0}
    new = optim.apply_updates(
        params, updates_of(optim.keep_params_nonnegative(), updates, params)
    )
    assert new["a"].tolist() == [0.5, 0.0, 0.0, 0.0] and new["none"] is None
    assert new["float"] == 0.0


def test_a_missing_gradient_stays_missing() -> None:
    updates = updates_of(optim.keep_params_nonnegative(), {"a": None}, {"a": jnp.ones(2)})
    assert updates == {"a": None}


def test_complex_parameters_can_not_be_nonnegative() -> None:
    z = jnp.array([1j])
    with pytest.raises(ParameterError, match="no sign"):
        updates_of(optim.keep_params_nonnegative(), z, z)
    masked = optim.masked(optim.keep_params_nonnegative(), {"z": False, "a": True})
    updates = updates_of(masked, {"z": z, "a": -3.0}, {"z": z, "a": 1.0})
    assert updates["a"] == -1.0 and updates["z"] is z


def test_nan_becomes_zero_and_is_reported_until_the_next_update() -> None:
    tx = optim.zero_nans()
    grads = {
        "a": jnp.array([1.0, jnp.nan]),
        "b": jnp.array([jnp.inf, -jnp.inf]),
        "z": jnp.array([1.0 + 1j, jax.lax.complex(jnp.nan, 1.0)]),
    }
    updates, state = tx.update(grads, tx.init(grads))
    assert updates["a"].tolist() == [1.0, 0.0] and updates["z"].tolist() == [1 + 1j, 0]
    np.testing.assert_array_equal(updates["b"], grads["b"])
    assert jax.tree.map(bool, state.found_nan) == {"a": True, "b": False, "z": True}
    _, state = tx.update(updates, state)
    assert not any(jax.tree.leaves(state.found_nan))


def test_the_joint_norm_becomes_the_scale_factor() -> None:
    grads = {"a": jnp.array([3.0, 0.0]), "z": jnp.array([4.0j])}
    updates = updates_of(optim.normalize_by_update_norm(-10.0, eps=0.0), grads)
    np.testing.assert_allclose(updates["a"], [-6.0, 0.0], rtol=3e-7)
    np.testing.assert_allclose(updates["z"], [-8.0j], rtol=3e-7)


def test_zero_updates_stay_zero_without_eps() -> None:
    zeros = {"a": jnp.zeros(2)}
    assert updates_of(optim.normalize_by_update_norm(eps=0.0), zeros)["a"].tolist() == [0, 0]
    judge = updates_of(optax.normalize_by_update_norm(eps=0.0), zeros)
    assert bool(jnp.all(jnp.isnan(judge["a"])))


def test_the_units_of_centralize_are_rows_or_the_outputs_of_linen_s_kernels() -> None:
    grad = jnp.asarray(np.random.default_rng(5).normal(size=(3, 3, 2, 4)), jnp.float32)
    # Means of a few dozen numbers of size 1.
    rows = updates_of(optim.centralize(), grad)
    np.testing.assert_allclose(rows.mean((1, 2, 3)), np.zeros(3), atol=1e-7)
    outputs = updates_of(optim.centralize(output_axis=-1), grad)
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), np.zeros(4), atol=1e-7)
    bias = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(updates_of(optim.centralize(), bias), bias)
