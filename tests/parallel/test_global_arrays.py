from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.errors import ArgumentError
from flaxtrain.parallel.global_arrays import gathered, global_batch, local_rows
from tests.parallel.pods import pod_mesh


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


def test_one_process_has_all_rows() -> None:
    spec = PartitionSpec("data")
    sharding = NamedSharding(jax.make_mesh((1,), ("data",)), spec)
    assert local_rows(sharding, 12) == slice(0, 12)


@pytest.mark.parametrize(
    ("owners", "found"),
    [
        ([0, 0, 1, 1], [0, 1, 2, 3]),
        ([1, 0, 0, 1], [2, 3, 4, 5]),
        ([0, 1, 0, 1], [0, 1, 4, 5]),
        ([1, 0, 1, 0], [2, 3, 6, 7]),
    ],
)
def test_the_rows_of_a_process_are_those_of_its_devices_wherever_they_lie(
    owners: list[int], found: list[int]
) -> None:
    spec = PartitionSpec("data")
    mine = local_rows(NamedSharding(pod_mesh({"data": 4}, owners), spec), 8)
    assert np.arange(8)[mine].tolist() == found
    assert isinstance(mine, slice) == (found[-1] - found[0] == 3)


def test_devices_with_the_same_rows_count_once() -> None:
    mesh = pod_mesh({"model": 2, "data": 2}, [0, 0, 1, 1])
    assert local_rows(NamedSharding(mesh, PartitionSpec("data")), 8) == slice(0, 8)


def test_a_mesh_without_a_device_of_this_process_is_refused() -> None:
    sharding = NamedSharding(pod_mesh({"data": 2}, [1, 1]), PartitionSpec("data"))
    with pytest.raises(ArgumentError, match="no device of process 0"):
        local_rows(sharding, 8)
