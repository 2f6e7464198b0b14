"""Several processes in one: a store they share, and a thread for each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import pytest

from flaxtrain.parallel.processes import agreement, coordination, joining

__all__ = ["Texts", "WaitedFor", "in_each_process"]

T = TypeVar("T")


class Texts:
    """A store in this process; nobody waits for its texts."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def put(self, key: str, text: str) -> None:
        self.texts[key] = text

    def add(self, key: str, text: str) -> bool:
        return self.texts.setdefault(key, text) is text

    def get(self, key: str, seconds: float) -> str | None:
        return self.texts.get(key)

    def under(self, prefix: str) -> dict[str, str]:
        start = f"{prefix}/"
        found = self.texts.copy().items()
        return {k.removeprefix(start): t for k, t in found if k.startswith(start)}


class WaitedFor(Texts):
    """One whose texts are waited for, as those of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self._news = threading.Condition()

    def put(self, key: str, text: str) -> None:
        with self._news:
            super().put(key, text)
            self._news.notify_all()

    def add(self, key: str, text: str) -> bool:
        with self._news:
            added = super().add(key, text)
            self._news.notify_all()
            return added

    def get(self, key: str, seconds: float) -> str | None:
        with self._news:
            self._news.wait_for(lambda: key in self.texts, seconds)
            return self.texts.get(key)


def in_each_process(
    count: int, call: Callable[[int], T], monkeypatch: pytest.MonkeyPatch
) -> list[T | Exception]:
    """Returns what a call that processes make together returns or raises in each of them.

    Args:
        count: how many processes.
        call: is given the number of the process.
        monkeypatch: of the test.
    """
    texts, process = WaitedFor(), threading.local()
    monkeypatch.setattr(coordination, "store", lambda: (texts, process.index, count))
    monkeypatch.setattr(agreement, "_ROUNDS", itertools.repeat(0))
    # A watch of these would end the tests.
    monkeypatch.setattr(joining, "_watched", lambda peer_timeout: None)
    monkeypatch.setattr(jax, "process_count", lambda: count)

    def run(index: int) -> T | Exception:
        process.index = index
        time.sleep(0.01 * (count - index))  # process 0 comes last
        try:
            return call(index)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
