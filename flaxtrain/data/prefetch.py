"""Prefetching: the next batches are on their way to the devices while a step runs.

`jax.device_put` returns at once, so a short queue is enough and no thread is needed: while the
devices are busy with one step, the host gathers the batches of the next ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentTypeError, DataError, FlaxtrainError

__all__ = ["Prefetcher", "prefetch"]

Host = TypeVar("Host")
Placed = TypeVar("Placed")


def source_error(error: Exception, where: str) -> FlaxtrainError:
    """Returns the error to raise in place of what a data set raised; our own pass unchanged.

    Example:
        >>> print(source_error(OSError("disk gone"), "batch 7").found)
        the data set raised OSError: disk gone
    """
    if isinstance(error, FlaxtrainError):
        return error
    wrapped = DataError(
        f"the data set raised {type(error).__name__}: {error}",
        where=where,
        fix="see its own traceback above; the batches before this one were delivered",
    )
    wrapped.__cause__ = error
    return wrapped


class Prefetcher(Iterator[Placed], Generic[Host, Placed]):
    """An iterator that holds at most `depth` placed batches. Made by `prefetch`.

    Attributes:
        waited: time spent waiting for the source so far, in the clock's unit (seconds).
    """

    def __init__(
        self,
        host_batches: Iterable[Host],
        put: Callable[[Host], Placed],
        depth: int,
        start: int,
        clock: Callable[[], float],
        on_wait: Callable[[float], None] | None,
    ) -> None:
        self._source: Iterator[Host] | None = iter(host_batches)
        self._put, self._depth, self._clock = put, depth, clock
        self._on_wait = on_wait
        self._queue: deque[Placed] = deque()
        self._failure: Exception | None = None
        self._index = start
        self.waited = 0.0

    def __next__(self) -> Placed:
        """Returns the oldest placed batch, after reading ahead."""
        while self._source is not None and len(self._queue) < self._depth:
            self._pull(self._source)
        if self._queue:
            return self._queue.popleft()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        raise StopIteration

    def _pull(self, source: Iterator[Host]) -> None:
        """Moves one batch from the source to the queue; an error is kept for its turn."""
        began = self._clock()
        found: list[Host] = []
        try:
            found.append(next(source))
        except StopIteration:
            self._source = None
        except Exception as error:
            self._source, self._failure = None, source_error(error, f"batch {self._index}")
        seconds = self._clock() - began
        self.waited += seconds
        if self._on_wait is not None:
            self._on_wait(seconds)
        self._index += len(found)
        self._queue.extend(self._put(batch) for batch in found)


def prefetch(
    host_batches: Iterable[Host],
    put: Callable[[Host], Placed],
    depth: int = 2,
    *,
    start: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_wait: Callable[[float], None] | None = None,
) -> Prefetcher[Host, Placed]:
    """Puts batches on the devices ahead of their use, at most `depth` of them.

    What the source raises comes as a `DataError` with the batch's number, after the batches
    before it were delivered.

    Args:
        host_batches: any iterable; up to `depth` batches are read ahead of the caller.
        put: places one batch, for example `jax.device_put`; must not block.
        depth: number of placed batches held, >= 1.
        start: number of the first batch, for messages.
        clock: returns the time in seconds.
        on_wait: called with the seconds of each read from the source.

    Returns:
        An iterator over the placed batches; its `waited` is the time the source took so far.

    Raises:
        ArgumentError: `depth` or `start` is out of range.
        ArgumentTypeError: `host_batches` can't be iterated, or `put` can't be called.

    Example:
        >>> placed = prefetch([1, 2, 3], put=lambda batch: batch * 10)
        >>> list(placed), placed.waited > 0
        ([10, 20, 30], True)
    """
    check_integer("depth", depth, minimum=1, where="prefetch")
    check_integer("start", start, minimum=0, where="prefetch")
    if not callable(put) or not callable(clock):
        raise ArgumentTypeError(
            "put and clock must be functions", where="prefetch", fix="pass put=jax.device_put"
        )
    if not hasattr(host_batches, "__iter__"):
        raise ArgumentTypeError(
            f"{type(host_batches).__name__} can't be iterated",
            where="prefetch(host_batches)",
            fix="pass an iterable of batches",
        )
    return Prefetcher(host_batches, put, depth, start, clock, on_wait)
