"""Batches that end early or are not alike: told with several steps in a call as with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.data import HostBatch, as_stream, pad
from flaxtrain.data.around import StreamAround
from flaxtrain.errors import BatchError, FlaxtrainError
from tests.runs import FLOAT32_BAR, deviation

ROWS = 8
Batch = dict[str, np.ndarray]


def batch(number: int, rows: int = ROWS, columns: int = 6, dtype: str = "float32") -> Batch:
    x = np.random.default_rng(number).normal(size=(rows, columns)).astype(dtype)
    return {"x": x, "label": (x[:, 0] > 0).astype("int32")}


def with_sixth(**other: Any) -> Callable[[], Iterator[Batch]]:
    """Returns batches of which the sixth is another."""
    return lambda: (batch(n, **(other if n == 5 else {})) for n in range(9))


class Promising(list[Batch]):
    """Has a length that it does not keep."""

    def __len__(self) -> int:
        return 9


def run(ds: Any, steps_per_call: int, **length: Any) -> tuple[ft.Trainer, Any]:
    """Returns the trainer, and the error or None."""
    spec = ft.OptSpec("sgd", learning_rate=0.1)
    one = ft.Trainer(
        nn.Dense(2), spec, log_every=10, steps_per_call=steps_per_call, verbose=False
    )
    try:
        one.fit(ds, **length)
    except FlaxtrainError as error:
        return one, error
    return one, None


CASES: dict[str, tuple[Callable[[], Any], dict[str, int], int]] = {
    "other columns": (lambda: with_sixth(columns=5), {"steps": 9}, 5),
    "another dtype": (lambda: with_sixth(dtype="int32"), {"steps": 9}, 5),
    "more rows": (lambda: with_sixth(rows=ROWS + 1), {"steps": 9}, 5),
    "no rows": (lambda: with_sixth(rows=0), {"steps": 9}, 5),
    "an iterator that ends": (lambda: (batch(n) for n in range(6)), {"steps": 9}, 6),
    "fewer than promised": (lambda: Promising(map(batch, range(6))), {"epochs": 2}, 6),
}


@pytest.mark.parametrize(("ds", "length", "good"), CASES.values(), ids=CASES)
def test_the_error_and_the_state_are_those_of_one_step_per_call(
    ds: Callable[[], Any], length: dict[str, int], good: int
) -> None:
    single, expected = run(ds(), 1, **length)
    several, found = run(ds(), 4, **length)
    assert expected is not None and expected.fix
    assert (type(found), str(found)) == (type(expected), str(expected))
    assert single.state is not None and several.state is not None
    assert int(single.state.step) == int(several.state.step) == good
    assert deviation(several.state.params, single.state.params) <= FLOAT32_BAR


def test_a_smaller_batch_among_the_others_is_padded() -> None:
    single, no_error = run(with_sixth(rows=3), 1, steps=9)
    several, nor_here = run(with_sixth(rows=3), 4, steps=9)
    assert no_error is None and nor_here is None
    assert single.state is not None and several.state is not None
    assert deviation(several.state.params, single.state.params) <= FLOAT32_BAR
    assert several.compilations["train"] == 1


def test_a_function_of_fewer_batches_than_steps_begins_anew() -> None:
    single, _ = run(lambda: map(batch, range(6)), 1, steps=15)
    several, error = run(lambda: map(batch, range(6)), 4, steps=15)
    assert error is None
    assert single.state is not None and several.state is not None
    assert int(several.state.step) == 15
    assert deviation(several.state.params, single.state.params) <= FLOAT32_BAR


@dataclass(frozen=True)
class Unlike(StreamAround):
    """A stream of somebody's own, in which nobody looks at the batches."""

    other: HostBatch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HostBatch]:
        for index, batch in enumerate(self.source.epoch(epoch, start), start):
            yield self.other if index == 5 else batch


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (batch(5, columns=5), "float32[8, 5] behind float32[8, 6]"),
        (batch(5, dtype="float16"), "float16[8, 6] behind float32[8, 6]"),
        (batch(5) | {"more": batch(5)["x"]}, "more"),
    ],
)
def test_batches_of_a_stream_that_can_not_be_stacked_are_named(other: Batch, text: str) -> None:
    stream = Unlike(as_stream([batch(n) for n in range(9)]), pad(other, ROWS))
    one, error = run(stream, 4, steps=9)
    assert isinstance(error, BatchError) and text in error.found
    assert error.where == "batches 4 to 7 of the run"
    assert one.state is not None and int(one.state.step) == 4
