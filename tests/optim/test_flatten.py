"""flatten: one vector for each dtype."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ParameterError
from tests.runs import differing_leaves, layout, walk

MIXED = {
    "a": jnp.array([[1.0, 2.0]]),
    "b": jnp.array([3.0, 4.0], jnp.bfloat16),
    "c": jnp.array([1j]),
    "d": jnp.array(5.0),
}


def multiply(factor: float, leaf: jax.Array) -> jax.Array:
    return factor * leaf


def test_leaves_of_one_dtype_are_one_vector_as_in_optax() -> None:
    params = {"a": MIXED["a"], "d": MIXED["d"]}
    grads = jax.tree.map(lambda p: jnp.stack([p, -2 * p, p]), params)
    ours, judge = (
        walk(lib.flatten(lib.adam(0.1)), params, grads, jit=True) for lib in (optim, optax)
    )
    assert differing_leaves(ours, judge) == [] and ours[1][0].mu.shape == (3,)


def test_leaves_of_several_dtypes_are_not_promoted() -> None:
    tx, judge = optim.flatten(optim.trace(0.5)), optax.flatten(optax.trace(0.5))
    promoted, _ = judge.update(MIXED, judge.init(MIXED))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(promoted)} == {"complex64"}
    state = tx.init(MIXED)
    assert sorted(state.trace) == ["bfloat16", "complex64", "float32"]
    for factor in (1.0, 1.5):
        updates, after = tx.update(MIXED, state, MIXED)
        assert layout((updates, after)) == layout((MIXED, state))
        assert differing_leaves(updates, jax.tree.map(partial(multiply, factor), MIXED)) == []
        state = after


def test_gradients_of_another_dtype_go_with_their_parameters() -> None:
    tx = optim.flatten(optim.trace(0.5))
    params = {"a": MIXED["a"], "b": MIXED["b"]}
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    updates, _ = tx.update(wide, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, wide)


def test_a_norm_is_over_all_vectors_together() -> None:
    params = {"a": jnp.array([3.0]), "c": jnp.array([4j])}
    tx = optim.flatten(optim.clip_by_global_norm(1.0))
    updates, _ = tx.update(params, tx.init(params))
    # One division, one product.
    np.testing.assert_allclose(updates["a"], [0.6], rtol=2e-7)
    np.testing.assert_allclose(updates["c"], [0.8j], rtol=2e-7)


def test_trees_of_different_structure_are_refused() -> None:
    tx = optim.flatten(optim.sgd(0.1))
    with pytest.raises(ParameterError, match="trees of different structure"):
        tx.update({"a": None, "d": MIXED["d"]}, tx.init(MIXED), {"a": 1.0, "d": 1.0})
