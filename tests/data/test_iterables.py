from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from flaxtrain.data import HostBatch, as_stream, prefetch
from flaxtrain.errors import ArgumentTypeError, BatchError, DataError, EmptyDatasetError

SIZES = (4, 4, 2)


def made(sizes: tuple[int, ...] = SIZES) -> Iterator[dict[str, np.ndarray]]:
    """Batches whose rows are numbered through."""
    first = 0
    for size in sizes:
        yield {"x": np.arange(first, first + size, dtype=np.float64)}
        first += size


class Loader:
    """A re-iterable like torch's `DataLoader`: yields lists, knows its length."""

    drop_last = False

    def __init__(self, sizes: tuple[int, ...] = SIZES, length: int | None = None) -> None:
        self.sizes, self.length, self.passes = (
            sizes,
            len(sizes) if length is None else length,
            0,
        )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        self.passes += 1
        return ([batch["x"], -batch["x"]] for batch in made(self.sizes))


class Unsized:
    """A re-iterable like tf.data: asking for its length is an error."""

    def __len__(self) -> int:
        raise TypeError("the length is unknown")

    def __iter__(self) -> Iterator[Any]:
        return made()


def real(found: Iterator[HostBatch]) -> list[list[float]]:
    """Returns the real rows of each batch, of its first leaf."""
    leaves = [(b.data["x"] if isinstance(b.data, dict) else b.data[0], b.count) for b in found]
    return [leaf[:count].tolist() for leaf, count in leaves]


WANTED = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
REPEATABLE = [
    pytest.param(lambda: list(made()), 3, id="list"),
    pytest.param(Loader, 3, id="loader"),
    pytest.param(Unsized, None, id="unsized"),
    pytest.param(lambda: made, None, id="function"),
    pytest.param(lambda: lambda: list(made()), None, id="function returning a list"),
]


@pytest.mark.parametrize(("make", "length"), REPEATABLE)
def test_what_can_be_repeated_gives_every_epoch_whole(make: Any, length: int | None) -> None:
    stream = as_stream(make())
    assert (stream.rows, stream.batches_per_epoch) == (4, length)
    assert stream.repeats and not stream.seekable and stream.may_be_padded
    for epoch in range(3):
        assert stream.example().data is not None
        assert real(stream.epoch(epoch)) == WANTED


@pytest.mark.parametrize(("make", "length"), REPEATABLE)
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_starting_later_equals_skipping(make: Any, length: int | None, start: int) -> None:
    stream = as_stream(make())
    assert real(stream.epoch(0, start)) == WANTED[start:]
    assert real(stream.epoch(1, start)) == WANTED[start:]


def test_every_batch_is_padded_to_the_rows_of_the_first_and_32_bits() -> None:
    for batch in as_stream(list(made())).epoch(0):
        assert batch.data["x"].shape == (4,) and batch.data["x"].dtype == np.float32
        assert batch.mask.sum() == batch.count


def test_the_example_is_the_first_batch_and_is_not_lost() -> None:
    stream = as_stream(made())
    assert (
        stream.example().data["x"].tolist() == stream.example().data["x"].tolist() == WANTED[0]
    )
    assert real(stream.epoch(0)) == WANTED


def test_a_loader_is_not_started_twice_for_the_example() -> None:
    loader = Loader()
    stream = as_stream(loader)
    stream.example()
    list(stream.epoch(0))
    assert loader.passes == 1


def test_a_generator_serves_one_epoch_and_then_says_what_to_do() -> None:
    stream = as_stream(made())
    assert not stream.repeats and stream.batches_per_epoch is None
    list(stream.epoch(0))
    with pytest.raises(DataError, match="the generator can be iterated once only") as caught:
        stream.epoch(1)
    assert "a function that returns a new iterator" in str(caught.value.fix)


def test_a_function_that_returns_the_same_iterator_is_found_out_in_the_second_epoch() -> None:
    once = made()
    stream = as_stream(lambda: once)
    list(stream.epoch(0))
    with pytest.raises(EmptyDatasetError, match="yields no batch"):
        list(stream.epoch(1))


@pytest.mark.parametrize("empty", [[], iter([]), lambda: iter([]), Loader(())])
def test_an_empty_data_set_is_refused_at_once(empty: Any) -> None:
    with pytest.raises(EmptyDatasetError, match="the data set yields no batch"):
        as_stream(empty)


def test_padding_is_excluded_where_that_is_known() -> None:
    assert not as_stream(list(made((4, 4)))).may_be_padded
    assert as_stream(list(made((4, 2)))).may_be_padded
    assert as_stream(Loader((4, 4))).may_be_padded
    full = Loader((4, 4))
    full.drop_last = True
    assert not as_stream(full).may_be_padded


def test_a_loader_that_promised_full_batches_is_held_to_it() -> None:
    loader = Loader()
    loader.drop_last = True
    with pytest.raises(BatchError, match="has 2 rows, the first had 4") as caught:
        list(as_stream(loader).epoch(0))
    assert caught.value.where == "epoch 0, batch 2"


def test_a_list_knows_its_examples() -> None:
    assert as_stream(list(made())).examples_per_epoch == 10
    assert as_stream(Loader()).examples_per_epoch is None


@pytest.mark.parametrize("length", [2, 10])
def test_a_length_that_counts_something_else_is_an_error(length: int) -> None:
    with pytest.raises(DataError, match=f"promised {length} batches per epoch, but 3 came"):
        list(as_stream(Loader(length=length)).epoch(0))


def test_skipping_beyond_the_end_is_an_error() -> None:
    with pytest.raises(DataError, match="ended after 3 batches, but 5 are to be skipped"):
        list(as_stream(list(made())).epoch(0, start=5))


FIRST = {"x": np.ones((4, 8)), "y": np.ones(4, np.int32)}
CHANGES = [
    (
        {"x": np.ones((4, 9)), "y": FIRST["y"]},
        r"x has rows of shape \(9,\), in the first batch \(8,\)",
    ),
    ({"x": FIRST["x"], "y": np.ones(4)}, "y has dtype float32, in the first batch int32"),
    ({"x": FIRST["x"]}, "the batch lacks y; the first has x, y"),
    (FIRST | {"z": np.ones(4)}, "the batch adds z; the first has x, y"),
    ({"x": FIRST["x"], "w": FIRST["y"]}, "the batch lacks y and adds w; the first has x, y"),
    ((FIRST["x"], FIRST["y"]), "the batch lacks x, y and adds 0, 1; the first has x, y"),
    (
        {"x": np.ones((5, 8)), "y": np.ones(5, np.int32)},
        "5 rows, more than the first, which has 4",
    ),
    ({"x": np.ones((0, 8)), "y": np.ones(0, np.int32)}, "the batch has no rows"),
    (
        {"x": np.ones((4, 8)), "y": np.ones(3, np.int32)},
        "the leading axes disagree: x has 4, y has 3",
    ),
]


@pytest.mark.parametrize(("changed", "found"), CHANGES)
def test_a_change_between_batches_is_an_error_with_its_place(changed: Any, found: str) -> None:
    stream = as_stream(lambda: iter([FIRST, FIRST, changed]))
    batches = stream.epoch(7)
    assert next(batches).count == next(batches).count == 4
    with pytest.raises(BatchError, match=found) as caught:
        next(batches)
    assert caught.value.where == "epoch 7, batch 2"


def test_another_nesting_of_the_same_names_is_a_change() -> None:
    class Same(dict):
        pass

    x = np.ones(2)
    stream = as_stream(lambda: iter([{"a": {"0": x}}, {"a": (x,)}]))
    with pytest.raises(BatchError, match="the batch is nested as"):
        list(stream.epoch(0))


def test_what_a_data_set_raises_comes_with_the_number_of_the_batch() -> None:
    def poisoned() -> Iterator[Any]:
        yield from made((4, 4))
        raise OSError("disk gone")

    batches = as_stream(poisoned).epoch(0)
    assert next(batches).count == next(batches).count == 4
    with pytest.raises(DataError, match="the data set raised OSError: disk gone") as caught:
        next(batches)
    assert caught.value.where == "epoch 0, batch 2"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_function_that_needs_arguments_is_an_error_of_ours() -> None:
    with pytest.raises(DataError, match=r"raised TypeError.*missing 1 required") as caught:
        as_stream(lambda epoch: made())
    assert caught.value.where == "the call of the data set, without arguments"


@pytest.mark.parametrize("wrong", [3, None, object(), lambda: 3])
def test_what_can_not_be_iterated_is_refused_with_what_can_be(wrong: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="can't be iterated") as caught:
        as_stream(wrong)
    assert "a dict or tuple of arrays" in str(caught.value.fix)


def test_a_data_set_of_single_examples_is_told_to_batch_them() -> None:
    class Examples:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            if index == 3:
                raise IndexError
            return np.ones((8, 8)), index

    with pytest.raises(BatchError, match="1 is an int, not an array") as caught:
        as_stream(Examples())
    assert "yield single examples? Batch them" in str(caught.value.fix)


def test_an_endless_generator_is_read_one_batch_at_a_time() -> None:
    read = []

    def endless() -> Iterator[Any]:
        while True:
            read.append(None)
            yield {"x": np.ones(2)}

    stream = as_stream(endless())
    batches = stream.epoch(0)
    assert [next(batches).count for _ in range(5)] == [2] * 5
    assert len(read) == 5


def aligned(rows: int) -> np.ndarray:
    """Float32 memory on a 64-byte boundary, which jax on a CPU would read in place."""
    raw = np.zeros(4 * rows + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + 4 * rows].view(np.float32)


def test_a_source_that_refills_one_buffer_gives_the_batches_it_meant() -> None:
    def refilling() -> Iterator[Any]:
        buffer = aligned(1024)
        for index in range(6):
            buffer[:] = index
            yield {"x": buffer}

    placed = list(prefetch(as_stream(refilling).epoch(0), jax.device_put, depth=3))
    assert [float(batch.data["x"][0]) for batch in placed] == [0, 1, 2, 3, 4, 5]


def test_a_list_of_right_batches_is_not_copied() -> None:
    x = np.ones(4, np.float32)
    assert as_stream([{"x": x}]).example().data["x"] is x
