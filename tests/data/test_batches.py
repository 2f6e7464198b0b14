from __future__ import annotations

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxtrain.data import ArrayBatches, batches
from flaxtrain.errors import ArgumentError, ArgumentTypeError, EmptyDatasetError

QUICK = settings(max_examples=60, deadline=None)
SIZES = st.integers(1, 40)


def rows(data: ArrayBatches, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch[0].tolist() for batch in data.epoch(epoch, start)]


@QUICK
@given(n=SIZES, size=SIZES, seed=st.integers(0, 2**40), epoch=st.integers(0, 2**33))
def test_every_example_comes_exactly_once_per_epoch(
    n: int, size: int, seed: int, epoch: int
) -> None:
    found = rows(batches((np.arange(n),), size, shuffle=True, seed=seed), epoch)
    assert sorted(row for batch in found for row in batch) == list(range(n))
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)


@QUICK
@given(n=SIZES, size=SIZES, shuffle=st.booleans(), drop=st.booleans(), data=st.data())
def test_seeking_equals_skipping(
    n: int, size: int, shuffle: bool, drop: bool, data: st.DataObject
) -> None:
    size = min(size, n) if drop else size
    ds = batches((np.arange(n),), size, shuffle=shuffle, seed=3, drop_remainder=drop)
    start = data.draw(st.integers(0, len(ds)))
    assert rows(ds, 5, start) == rows(ds, 5)[start:]


@QUICK
@given(n=SIZES, size=SIZES)
def test_the_length_is_the_number_of_batches(n: int, size: int) -> None:
    assert len(batches((np.arange(n),), size)) == len(rows(batches((np.arange(n),), size), 0))
    if size <= n:
        full = batches((np.arange(n),), size, drop_remainder=True)
        assert len(full) == n // size
        assert {len(batch) for batch in rows(full, 0)} == {size}


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    first = batches((np.arange(100),), 10, shuffle=True, seed=7)
    again = batches((np.arange(100),), 33, shuffle=True, seed=7)
    other = batches((np.arange(100),), 10, shuffle=True, seed=8)
    list(first.epoch(0))
    np.testing.assert_array_equal(first.order(4), again.order(4))
    assert (first.order(4) != first.order(5)).any()
    assert (first.order(4) != other.order(4)).any()


def test_the_order_is_the_recorded_one() -> None:
    """A change of numpy's generator would break the resumption of older runs."""
    order = batches((np.arange(1000),), 10, shuffle=True, seed=1).order(2).astype("<i8")
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "4eab02a7ca5bd84b"


def test_a_permutation_is_not_biased_to_its_start() -> None:
    """Mean position of row 0 over 400 epochs of 50 rows: 24.5, standard error 14.4 / 20."""
    ds = batches((np.arange(50),), 10, shuffle=True)
    positions = [int(np.flatnonzero(ds.order(epoch) == 0)[0]) for epoch in range(400)]
    assert abs(np.mean(positions) - 24.5) < 4 * 14.4 / 20  # four standard errors


def test_plain_iteration_is_epoch_zero_every_time() -> None:
    ds = batches((np.arange(9),), 4, shuffle=True, seed=2)
    assert (
        [batch[0].tolist() for batch in ds]
        == [batch[0].tolist() for batch in ds]
        == rows(ds, 0)
    )


def test_leaves_stay_together_in_nested_batches() -> None:
    x = np.arange(30).reshape(10, 3)
    ds = batches({"a": (x, -x), "b": {"c": 2 * x[:, 0]}}, 4, shuffle=True)
    for batch in ds:
        np.testing.assert_array_equal(batch["a"][0], -batch["a"][1])
        np.testing.assert_array_equal(batch["b"]["c"], 2 * batch["a"][0][:, 0])


def test_arrays_are_shared_and_never_changed() -> None:
    x = np.arange(8.0)
    ds = batches({"x": x}, 3)
    assert np.shares_memory(ds.arrays["x"], x)
    batch = next(iter(ds))
    assert np.shares_memory(batch["x"], x)
    with pytest.raises(ValueError, match="read-only"):
        batch["x"] *= 2
    assert x.flags.writeable and (x == np.arange(8.0)).all()


def test_a_shuffled_batch_is_a_copy() -> None:
    x = np.arange(8.0)
    batch = next(iter(batches({"x": x}, 3, shuffle=True)))
    batch["x"] *= 0
    assert (x == np.arange(8.0)).all()


def test_jax_arrays_and_memory_maps_are_taken(tmp_path) -> None:
    mapped = np.memmap(tmp_path / "x", dtype=np.int32, mode="w+", shape=(5,))
    mapped[:] = np.arange(5)
    ds = batches((jnp.arange(5.0), mapped), 2)
    assert [batch[1].tolist() for batch in ds] == [[0, 1], [2, 3], [4]]
    assert isinstance(next(iter(ds))[0], np.ndarray)


def test_a_start_beyond_the_epoch_is_refused_at_the_call() -> None:
    ds = batches((np.arange(5),), 2)
    assert list(ds.epoch(0, start=3)) == []
    with pytest.raises(ArgumentError, match="start=4, but an epoch has 3 batches"):
        ds.epoch(0, start=4)


def test_a_data_set_smaller_than_a_batch_is_one_batch_or_an_error_with_both_numbers() -> None:
    assert [batch[0].tolist() for batch in batches((np.arange(3),), 8)] == [[0, 1, 2]]
    with pytest.raises(EmptyDatasetError, match="3 examples are fewer than one batch of 8"):
        batches((np.arange(3),), 8, drop_remainder=True)


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 2, "seed": -1}]
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=f"{list(arguments)[-1]}="):
        batches((np.arange(3),), **arguments)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 2.0},
        {"batch_size": True},
        {"seed": "0"},
        {"shuffle": 1},
        {"drop_remainder": 0},
    ],
)
def test_wrong_types_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentTypeError, match=next(iter(arguments))):
        batches((np.arange(3),), **({"batch_size": 2} | arguments))  # type: ignore[arg-type]


def test_the_text_form_says_what_it_is() -> None:
    assert repr(batches((np.arange(3),), 2)) == (
        "ArrayBatches(3 examples, batch_size=2, shuffle=False, seed=0, drop_remainder=False)"
    )
