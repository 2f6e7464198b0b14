"""The first batches of a data set as a data set."""

from __future__ import annotations

import numpy as np

from flaxtrain.data import as_stream
from flaxtrain.loop.debug.few_batches import few_batches, sample_of


def test_of_arrays_the_ragged_batch_is_among_them() -> None:
    for rows, counts in ((11, [4, 3]), (12, [4, 4]), (4, [4]), (3, [3]), (6, [4, 2])):
        stream = few_batches(as_stream({"x": np.arange(rows)}, batch_size=4))
        assert [batch.count for batch in stream.epoch(0)] == counts


def test_of_an_iterable_only_the_first_ones_are_taken() -> None:
    whole = as_stream([{"x": np.full(2, i)} for i in range(5)])
    stream = few_batches(whole)
    assert [int(batch.data["x"][0]) for batch in stream.epoch(0)] == [0, 1]
    assert [int(batch.data["x"][0]) for batch in stream.epoch(1, 1)] == [1]
    assert list(stream.epoch(0, 2)) == [] and stream.batches_per_epoch == 2
    assert stream.rows == 2 and stream.repeats and "first 2 batches" in stream.description
    assert int(stream.example().data["x"][0]) == 0 and stream.examples_per_epoch is None


def test_the_sample_has_no_padding_and_divides_into_microbatches() -> None:
    for count, microbatches, rows in (
        (10, 1, [*range(10)]),
        (10, 4, [*range(8)]),
        (20, 4, [*range(16)]),
        (3, 4, [0, 1, 2, 0]),
        (1, 2, [0, 0]),
    ):
        stream = as_stream({"x": np.arange(count)}, batch_size=16)
        assert sample_of(stream, microbatches)["x"].tolist() == rows


def test_the_sample_is_a_copy() -> None:
    buffer = np.arange(4)
    sample = sample_of(as_stream([{"x": buffer}]))
    buffer[:] = 9
    assert sample["x"].tolist() == [0, 1, 2, 3]
