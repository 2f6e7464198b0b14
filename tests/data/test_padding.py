from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxtrain.data import HostBatch, pad
from flaxtrain.errors import ArgumentError, BatchError


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 12), extra=st.integers(0, 12), dtype=st.sampled_from(["f4", "i8", "?"])
)
def test_padding_never_changes_real_rows(count: int, extra: int, dtype: str) -> None:
    x = np.random.default_rng(count).integers(0, 2, (count, 2, 3)).astype(dtype)
    before = x.copy()
    padded = pad({"x": x, "deep": (x[:, 0],)}, count + extra)
    np.testing.assert_array_equal(padded.data["x"][:count], before)
    np.testing.assert_array_equal(padded.data["deep"][0][:count], before[:, 0])
    np.testing.assert_array_equal(x, before)
    assert padded.data["x"].dtype == x.dtype and len(padded.data["x"]) == count + extra
    assert padded.count == count and padded.mask.sum() == count and padded.mask[:count].all()


def test_padding_repeats_the_last_row_and_brings_no_nan() -> None:
    x = np.array([[np.nan, 1.0], [2.0, 3.0]])
    assert pad((x,), 4).data[0][2:].tolist() == [[2.0, 3.0], [2.0, 3.0]]


def test_weights_of_examples_are_padded_with_zeros_but_attention_masks_are_not() -> None:
    batch = {
        "weight": np.array([2.0, 3.0]),
        "mask": np.array([[True, False], [True, True]]),
        "image": np.ones((2, 1)),
    }
    padded = pad(batch, 3).data
    assert padded["weight"].tolist() == [2.0, 3.0, 0.0]
    assert padded["mask"].tolist() == [[True, False], [True, True], [True, True]]
    assert pad({"mask": np.array([True, True])}, 3).data["mask"].tolist() == [True, True, False]


def test_a_full_batch_is_passed_on_without_a_copy() -> None:
    x = np.ones((3, 2))
    padded = pad({"x": x}, 3)
    assert padded.data["x"] is x and padded.mask.all() and padded.count == 3


def test_the_shared_mask_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        pad((np.ones(2),), 3).mask[0] = False


def test_a_host_batch_goes_to_the_device_whole_and_keeps_its_count() -> None:
    placed = jax.device_put(pad({"x": np.ones((2, 3))}, 4))
    assert isinstance(placed, HostBatch) and isinstance(placed.data["x"], jax.Array)
    assert type(placed.count) is int and placed.count == 2


@pytest.mark.parametrize(
    ("count", "found"), [(5, "5 rows do not fit into 4"), (0, "the batch has 0 rows")]
)
def test_a_batch_that_can_not_be_padded_is_refused(count: int, found: str) -> None:
    with pytest.raises(BatchError, match=found):
        pad({"x": np.ones((count, 2))}, 4)


def test_zero_rows_and_disagreeing_rows_are_refused() -> None:
    with pytest.raises(ArgumentError, match="rows=0"):
        pad((np.ones(2),), 0)
    with pytest.raises(BatchError, match="the leading axes disagree: 0 has 2, 1 has 3"):
        pad((np.ones(2), np.ones(3)), 4)
