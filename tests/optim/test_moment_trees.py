"""Moving averages of whole trees give what optax's give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.optim import DecayRate

RANDOM = np.random.default_rng(0)
GRADS = {
    "a": jnp.asarray(RANDOM.normal(size=(3, 2)), jnp.float32),
    "b": jnp.asarray(RANDOM.normal(size=4), jnp.bfloat16),
    "none": None,
}
MOMENTS = {"a": jnp.full((3, 2), 0.3), "b": jnp.ones(4, jnp.bfloat16), "none": jnp.ones(1)}
COMPLEX = {"z": jnp.asarray(RANDOM.normal(size=3) + 1j * RANDOM.normal(size=3), jnp.complex64)}


def assert_same(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tree_update_moment", (GRADS, MOMENTS, 0.9, 1)),
        ("tree_update_moment", (GRADS, MOMENTS, 0.999, 2)),
        ("tree_update_moment", (COMPLEX, COMPLEX, 0.9, 2)),
        ("tree_update_moment_per_elem_norm", (GRADS, MOMENTS, 0.999, 2)),
        ("tree_update_moment_per_elem_norm", (GRADS, MOMENTS, 0.999, 3)),
        ("tree_update_moment_per_elem_norm", (COMPLEX, {"z": jnp.ones(3)}, 0.9, 2)),
        ("tree_update_moment_per_elem_norm", (COMPLEX, {"z": jnp.ones(3)}, 0.9, 3)),
        ("tree_update_infinity_moment", (GRADS, MOMENTS, 0.9, 1e-8)),
        ("tree_update_infinity_moment", (COMPLEX, {"z": jnp.ones(3)}, 0.9, 0.1)),
        ("tree_bias_correction", ({"a": MOMENTS["a"], "b": MOMENTS["b"]}, 0.9, jnp.int32(1))),
        ("tree_bias_correction", (COMPLEX, 0.999, jnp.int32(70))),
        ("tree_bias_correction", ({}, 0.9, jnp.int32(1))),
    ],
)
def test_moments_equal_those_of_optax(name: str, arguments: tuple[Any, ...]) -> None:
    ours, theirs = getattr(optim, name), getattr(optax.tree_utils, name)
    static = tuple(i for i, value in enumerate(arguments) if isinstance(value, (int, float)))
    assert_same(
        jax.jit(ours, static_argnums=static)(*arguments),
        jax.jit(theirs, static_argnums=static)(*arguments),
    )


def test_a_decay_that_is_an_array_keeps_its_complement() -> None:
    ours = optim.tree_update_moment(
        {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, DecayRate.of(0.999), 1
    )
    assert float(ours["w"][0]) == np.float32(0.001)
