from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.parallel import gathered, global_batch, local_rows


def rows() -> NamedSharding:
    return NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))


def test_a_batch_with_its_mask_keeps_values_and_types() -> None:
    batch = {"x": np.arange(6.0, dtype="float32").reshape(3, 2), "mask": np.ones(3, bool)}
    placed = global_batch((batch, np.int32(4)), rows())
    back = gathered(placed)
    np.testing.assert_array_equal(back[0]["x"], batch["x"])
    assert back[0]["mask"].dtype == bool and back[1] == 4
    assert placed[0]["x"].sharding == rows()


def test_keys_stay_keys_and_give_the_same_numbers() -> None:
    key = jax.random.key(3, impl="rbg")
    back = gathered({"rng": key, "step": 2, "w": jnp.ones(2)})
    assert jax.random.key_impl(back["rng"]) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.uniform(back["rng"]), jax.random.uniform(key))
    assert back["step"] == 2 and isinstance(back["w"], np.ndarray)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_process_has_all_rows(axis: int) -> None:
    spec = PartitionSpec(*[None] * axis, "data")
    sharding = NamedSharding(jax.make_mesh((1,), ("data",)), spec)
    assert local_rows(sharding, 12, axis=axis) == slice(0, 12)
