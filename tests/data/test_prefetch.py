from __future__ import annotations

from collections.abc import Iterator

import pytest

from flaxtrain.data import prefetch
from flaxtrain.errors import ArgumentError, ArgumentTypeError, BatchError, DataError


class Source:
    """Counts what was read from it; reading takes two ticks of its clock."""

    def __init__(self, length: int) -> None:
        self.length, self.read, self.time = length, 0, 0.0

    def __iter__(self) -> Iterator[int]:
        for index in range(self.length):
            self.time += 2.0
            self.read += 1
            yield index

    def clock(self) -> float:
        return self.time


def poisoned(error: BaseException, after: int) -> Iterator[int]:
    yield from range(after)
    raise error


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_all_batches_come_in_order(depth: int, length: int) -> None:
    assert list(prefetch(range(length), lambda batch: -batch, depth)) == [
        -i for i in range(length)
    ]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_at_most_depth_batches_are_read_ahead(depth: int) -> None:
    source = Source(10)
    batches = prefetch(source, lambda batch: batch, depth)
    assert source.read == 0
    for taken in range(1, 8):
        next(batches)
        assert source.read == min(10, taken + depth - 1)


def test_the_time_of_the_source_is_measured_and_that_of_putting_is_not() -> None:
    source, waits = Source(3), []

    def put(batch: int) -> int:
        source.time += 100.0
        return batch

    batches = prefetch(source, put, clock=source.clock, on_wait=waits.append)
    assert list(batches) == [0, 1, 2]
    assert batches.waited == sum(waits) == 6.0  # three reads of two ticks


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_a_poisoned_source_raises_after_the_good_batches_with_the_number_of_the_batch(
    depth: int,
) -> None:
    cause = OSError("disk gone")
    batches = prefetch(poisoned(cause, after=3), lambda batch: batch, depth, start=40)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the data set raised OSError: disk gone") as caught:
        next(batches)
    assert caught.value.__cause__ is cause and caught.value.where == "batch 43"
    assert list(batches) == []


def test_errors_of_our_own_pass_unchanged_and_interrupts_at_once() -> None:
    own = BatchError("rows differ", where="epoch 1, batch 1")
    batches = prefetch(poisoned(own, after=1), lambda batch: batch)
    assert next(batches) == 0
    with pytest.raises(BatchError) as caught:
        next(batches)
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt):
        next(prefetch(poisoned(KeyboardInterrupt(), after=1), lambda batch: batch))


def test_an_error_of_put_is_not_blamed_on_the_data_set() -> None:
    def put(batch: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(prefetch([1], put))


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"start": -1}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        prefetch([1], lambda batch: batch, **arguments)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_types_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="must be functions"):
        prefetch([1], None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="int can't be iterated"):
        prefetch(3, lambda batch: batch)  # type: ignore[arg-type]
