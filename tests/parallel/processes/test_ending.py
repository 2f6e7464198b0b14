"""Where all processes end: rules moved by hand, and processes that are threads."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxtrain.parallel.processes.ending import Ending
from flaxtrain.parallel.processes.watch import PeerWatch
from tests.parallel.processes.together import WaitedFor

IN_FLIGHT = 8


def test_who_was_asked_does_not_go_on_and_does_not_change_its_answer() -> None:
    ending = Ending()
    assert ending.goes_on(3) and ending.goes_on(4)
    ending.ask(1)
    assert ending.is_open and ending.answer == (1, 5)
    assert not ending.goes_on(5) and ending.answer == (1, 5)


def test_what_is_asked_of_the_next_run_waits_for_it() -> None:
    ending = Ending()
    ending.goes_on(7)
    ending.ask(2)
    assert ending.goes_on(8) and ending.answer == (2, 0)
    ending.begin()
    assert not ending.goes_on(0) and ending.answer == (2, 0)


def test_the_end_of_one_run_is_not_that_of_the_next() -> None:
    ending = Ending()
    ending.ask(1)
    assert ending.settle(1, 5) and not ending.settle(1, 9)
    assert ending.is_over(5) and not ending.is_over(4)
    ending.begin()
    assert not ending.is_open and ending.goes_on(5)


class Together:
    """Steps that take all processes: nobody is more than eight ahead of the last one."""

    def __init__(self, count: int) -> None:
        self._made, self._news = [0] * count, threading.Condition()

    def make(self, index: int, batch: int) -> None:
        with self._news:
            self._made[index] = batch
            self._news.notify_all()
            oldest = batch - IN_FLIGHT
            assert self._news.wait_for(lambda: min(self._made) >= oldest, 20.0), self._made


@pytest.mark.parametrize(("wanting", "calls"), [([1], 1), ([0], 1), ([0, 1, 2], 1), ([2], 4)])
def test_all_end_after_the_same_batch(wanting: list[int], calls: int) -> None:
    texts, together, count = WaitedFor(), Together(3), 3
    running = [PeerWatch(texts, index, count, interval=0.2).start() for index in range(count)]
    total, asked_at = 100_000, 50

    def run(index: int) -> int:
        watch, pace = running[index], random.Random(index)
        with watch.run():
            for batches in range(calls, total, calls):
                together.make(index, batches)
                if pace.random() < 0.1:
                    time.sleep(0.001 * index)
                if watch.ends(batches, wanted=index in wanting and batches >= asked_at):
                    return batches
        return total

    try:
        with ThreadPoolExecutor(count) as pool:
            ends = list(pool.map(run, range(count)))
    finally:
        for one in running:
            one._done.set()
    # Whoever asks is at most eight steps behind the one that has got farthest.
    assert len(set(ends)) == 1 and asked_at <= ends[0] <= asked_at + 2 * calls + 2 * IN_FLIGHT
