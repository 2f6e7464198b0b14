"""Rows that are added for devices: at the end of each microbatch, without weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.data import as_stream
from flaxtrain.data.alignment import aligned
from flaxtrain.data.local_rows import as_given, batch_as_given, rows_as_given
from flaxtrain.errors import LossError
from flaxtrain.loop.length import horizon_of
from flaxtrain.loop.padding import check_padding
from flaxtrain.spec import AccumulateBatches
from flaxtrain.train import make_recipe
from tests.models import MLP

ARRAYS = {"x": np.arange(20.0), "weight": np.arange(1.0, 21.0), "pair": np.ones((20, 2))}


def stream(rows: int = 12, multiple: int = 8, microbatches: int = 2) -> Any:
    return aligned(as_stream(ARRAYS, batch_size=rows), multiple, microbatches)


def test_each_microbatch_is_padded_by_itself_and_padding_has_no_weight() -> None:
    first, last = stream().epoch(0)
    assert first.data["x"].tolist() == [*range(6), 5, 5, *range(6, 12), 11, 11]
    assert first.mask.tolist() == [*[True] * 6, False, False] * 2
    assert first.data["weight"][[6, 7, 14, 15]].tolist() == [0.0] * 4
    # The last batch has 8 rows, which leaves two for its second microbatch.
    assert last.mask.sum() == last.count == 8
    assert last.mask[8:].tolist() == [True, True, *[False] * 6]


def test_the_batch_as_it_was_given_comes_back() -> None:
    source = as_stream(ARRAYS, batch_size=12)
    for given, padded in zip(source.epoch(0), stream().epoch(0), strict=True):
        data, mask = batch_as_given(stream(), padded.data, padded.mask)
        assert all(np.array_equal(given.data[name], data[name]) for name in ARRAYS)
        assert np.array_equal(given.mask, mask)


def test_rows_that_divide_stay_as_they_are() -> None:
    source = as_stream(ARRAYS, batch_size=16)
    assert aligned(source, 8, 2) is source
    assert as_given(stream()).rows == rows_as_given(stream()) == 12 and stream().rows == 16


def test_durations_in_examples_do_not_count_the_padding() -> None:
    assert horizon_of(stream(), 10, None, AccumulateBatches(1)).batch_size == 12


@pytest.mark.parametrize(("microbatches", "multiple"), [(1, 8), (2, 16)])
def test_a_loss_that_can_not_be_padded_is_told_what_divides(
    microbatches: int, multiple: int
) -> None:
    data = {"x": np.ones((12, 8), "float32"), "label": np.zeros(12, "int32")}
    recipe = make_recipe(
        MLP(),
        ft.OptSpec("sgd", learning_rate=0.1),
        data,
        loss=lambda model, batch: (model(batch["x"]) ** 2).mean(),
    )
    with pytest.raises(LossError) as error:
        check_padding(recipe, aligned(as_stream(data, batch_size=12), 8, microbatches))
    assert "12 rows do not divide among 8 devices" in error.value.found
    assert f"a multiple of {multiple} rows" in str(error.value.fix)
