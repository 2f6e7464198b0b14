"""The rows of one process: cut out of whole batches, or all that it yields."""

from __future__ import annotations

import numpy as np
import pytest

from flaxtrain.data import as_stream
from flaxtrain.data.local_rows import local_rows_of


@pytest.mark.parametrize("part", [slice(1, 3), np.array([0, 3])], ids=["range", "numbers"])
def test_data_and_mask_are_cut_alike(part: slice | np.ndarray) -> None:
    source = as_stream({"x": np.arange(6)}, batch_size=4, shuffle=False)
    mine = list(local_rows_of(source, 2, lambda rows: part).epoch(0))
    for own, whole in zip(mine, source.epoch(0), strict=True):
        np.testing.assert_array_equal(own.data["x"], whole.data["x"][part])
        np.testing.assert_array_equal(own.mask, whole.mask[part])
        assert own.count == whole.count


def test_rows_of_ones_own_may_be_padded_whatever_this_process_knows() -> None:
    own = [{"x": np.arange(4)}, {"x": np.arange(4)}]
    source = as_stream(own)
    assert not source.may_be_padded
    assert local_rows_of(source, 2, lambda rows: slice(0, rows)).may_be_padded


def test_whole_batches_say_themselves_whether_they_are_padded() -> None:
    for rows, padded in [(8, False), (6, True)]:
        source = as_stream({"x": np.arange(rows)}, batch_size=4)
        assert local_rows_of(source, 2, lambda rows: slice(0, 2)).may_be_padded is padded
