"""The numbers of a group in one array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from flaxtrain.optim import DecayRate
from flaxtrain.spec.packed_numbers import PackedNumbers

VALUES = {"a": jnp.float32(0.5), "b1": DecayRate.of(0.999), "c": jnp.float32(3.0)}


def test_what_is_packed_comes_back_by_name_and_in_order() -> None:
    scalars = PackedNumbers.of(VALUES)
    assert list(scalars) == list(VALUES) and len(scalars) == 3
    jax.tree.map(np.testing.assert_array_equal, dict(scalars), VALUES)
    assert "b2" not in scalars
    with pytest.raises(KeyError, match="b2"):
        scalars["b2"]


def test_there_is_one_leaf_however_many_numbers_and_none_are_fine() -> None:
    assert [leaf.shape for leaf in jax.tree.leaves(PackedNumbers.of(VALUES))] == [(4,)]
    assert jax.tree.leaves(PackedNumbers.of({})) == []
    assert dict(jax.tree.map(lambda leaf: leaf, PackedNumbers.of({}))) == {}


def test_the_structure_tells_names_and_kinds_but_no_values() -> None:
    def structure(values: dict[str, object]) -> object:
        return jax.tree.structure(PackedNumbers.of(values))  # type: ignore[arg-type]

    assert structure(VALUES) == structure({**VALUES, "a": jnp.float32(7.0)})
    assert structure(VALUES) != structure({**VALUES, "d": jnp.float32(1.0)})
    pair = {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}
    assert structure({"a": DecayRate.of(0.5)}) != structure(pair)


def test_a_compiled_function_reads_single_numbers_and_flax_can_store_them() -> None:
    scalars = PackedNumbers.of(VALUES)
    assert jax.jit(lambda s: s["a"] + s["b1"].complement + s["c"])(scalars) == 3.501
    stored = serialization.to_bytes(scalars)
    again = serialization.from_bytes(
        PackedNumbers.of({**VALUES, "a": jnp.float32(0.0)}), stored
    )
    np.testing.assert_array_equal(again.packed, scalars.packed)


def test_a_batched_state_has_batched_numbers() -> None:
    batched = jax.vmap(lambda rate: PackedNumbers.of({**VALUES, "a": rate}))(jnp.arange(3.0))
    np.testing.assert_array_equal(batched["a"], [0.0, 1.0, 2.0])
    again = PackedNumbers.of({**batched, "c": jnp.float32(4.0)})
    np.testing.assert_array_equal(again["c"], [4.0, 4.0, 4.0])
    np.testing.assert_array_equal(again["a"], [0.0, 1.0, 2.0])


def test_the_key_of_the_leaf_says_what_stands_where() -> None:
    ((path, _),) = jax.tree_util.tree_leaves_with_path(PackedNumbers.of(VALUES))
    assert [entry.key for entry in path] == ["a, b1, 1 - b1, c"]
