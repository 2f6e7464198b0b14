from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxtrain.data import HostBatch, Stream, as_stream, batches
from flaxtrain.errors import ArgumentError, ArgumentTypeError, BatchError, DataError


def real(found: Iterator[HostBatch]) -> list[int]:
    return [int(row) for batch in found for row in batch.data[0][batch.mask]]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 40), shuffle=st.booleans(), data=st.data())
def test_every_example_is_real_exactly_once_and_every_batch_has_the_same_rows(
    n: int, size: int, shuffle: bool, data: st.DataObject
) -> None:
    stream = as_stream((np.arange(n),), size, shuffle=shuffle, seed=1)
    found = list(stream.epoch(2))
    assert sorted(real(iter(found))) == list(range(n))
    assert {len(batch.data[0]) for batch in found} == {size} == {stream.rows}
    assert stream.may_be_padded == any(batch.count < size for batch in found)
    assert (stream.batches_per_epoch, stream.examples_per_epoch) == (len(found), n)
    start = data.draw(st.integers(0, len(found)))
    assert real(stream.epoch(2, start)) == real(iter(found[start:]))


def test_a_dropped_remainder_is_not_counted() -> None:
    stream = as_stream(batches((np.arange(10),), 4, drop_remainder=True))
    assert (stream.batches_per_epoch, stream.examples_per_epoch) == (2, 8)
    assert not stream.may_be_padded


def test_arrays_get_the_default_batch_size_and_say_so() -> None:
    stream = as_stream({"x": np.arange(200)})
    assert stream.rows == 128
    assert stream.description == (
        "200 examples, 2 batches per epoch, batch size 128 (the default; pass batch_size= to "
        "change it), in order"
    )
    chosen = as_stream({"x": np.arange(200)}, 50, shuffle=True, seed=3)
    assert chosen.description == (
        "200 examples, 4 batches per epoch, batch size 50, shuffled with seed 3"
    )


def test_batches_of_arrays_keep_their_own_settings() -> None:
    ds = batches((np.arange(10),), 4, shuffle=True, seed=5)
    stream = as_stream(ds, shuffle=False, seed=0)
    assert stream.rows == 4 and stream.seekable and stream.repeats
    assert real(stream.epoch(3)) == ds.order(3).tolist()


def test_the_example_is_the_first_batch_of_epoch_zero() -> None:
    stream = as_stream((np.arange(10),), 4, shuffle=True, seed=5)
    first = next(stream.epoch(0))
    np.testing.assert_array_equal(stream.example().data[0], first.data[0])


@pytest.mark.parametrize("ds", [np.ones((5, 2)), jnp.ones((5, 2))])
def test_one_array_is_a_data_set_of_inputs(ds: Any) -> None:
    assert [batch.data.shape for batch in as_stream(ds, 2).epoch(0)] == [(2, 2)] * 3


def test_64_bit_arrays_come_in_the_dtype_jax_uses_and_stay_as_they_are() -> None:
    x, y = np.arange(6.0), np.arange(6)
    batch = as_stream({"x": x, "y": y}, 4).example().data
    assert (batch["x"].dtype, batch["y"].dtype) == (np.float32, np.int32)
    assert (x.dtype, y.dtype) == (np.float64, np.int64)
    with jax.enable_x64(True):
        assert as_stream({"x": x}, 4).example().data["x"].dtype == np.float64


def test_a_number_that_does_not_fit_is_refused_with_its_batch() -> None:
    ids = np.array([1, 2, 3, 2**40])
    found = as_stream({"ids": ids}, 2).epoch(1)
    next(found)
    with pytest.raises(BatchError, match="ids holds int64 values that do not fit") as caught:
        next(found)
    assert caught.value.where == "epoch 1, batch 1"


def test_a_stream_is_returned_as_it_is() -> None:
    stream = as_stream((np.arange(4),), 2)
    assert isinstance(stream, Stream) and as_stream(stream) is stream
    generated = as_stream(iter([{"x": np.ones(2)}]))
    assert isinstance(generated, Stream) and as_stream(generated) is generated


def test_the_number_of_rows_is_the_batch_size_even_for_fewer_examples() -> None:
    batch = as_stream((np.arange(3),), 8).example()
    assert batch.count == 3 and batch.data[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "ds", [batches((np.arange(4),), 2), [(np.ones(2),)], lambda: iter([(np.ones(2),)])]
)
def test_a_batch_size_for_anything_but_arrays_is_an_error(ds: Any) -> None:
    with pytest.raises(ArgumentError, match=r"batch_size=3 was given for an? .*has batches"):
        as_stream(ds, 3)


def test_a_list_of_arrays_is_ambiguous() -> None:
    with pytest.raises(ArgumentTypeError, match="a list of arrays") as caught:
        as_stream([np.ones((4, 2)), np.ones(4)])
    assert "(inputs, targets)" in str(caught.value.fix)


def test_text_is_no_data_set() -> None:
    with pytest.raises(ArgumentTypeError, match=r"'train.csv' is a str, not a data set"):
        as_stream("train.csv")


def test_arrays_of_different_lengths_are_an_error_of_the_data_set() -> None:
    with pytest.raises(DataError, match="image has 4, label has 3") as caught:
        as_stream({"image": np.ones((4, 2)), "label": np.ones(3)})
    assert type(caught.value) is DataError


def test_a_batch_size_out_of_range_is_refused() -> None:
    with pytest.raises(ArgumentError, match="batch_size=0"):
        as_stream((np.ones(2),), 0)
