from __future__ import annotations

import os
import threading
import time

import pytest

from flaxtrain.parallel.processes import leaving
from flaxtrain.parallel.processes.leaving import leave


class Gone(Exception):
    """The process has ended, in a test."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr(os, "_exit", end)
    # The tests' own logs go on.
    monkeypatch.setattr(leaving.logging, "shutdown", lambda: None)


@pytest.mark.usefixtures("ends")
def test_what_is_said_and_flushed_comes_before_the_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    flushed: list[int] = []

    def fails() -> None:
        raise OSError("no more disk")

    with pytest.raises(Gone, match=r"^75$"):
        leave("process 1 is gone", 75, [fails, lambda: flushed.append(1)])
    assert capfd.readouterr().err == "flaxtrain: process 1 is gone\n"
    assert flushed == [1]


@pytest.mark.usefixtures("ends")
def test_a_flush_that_hangs_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_FLUSH_SECONDS", 0.05)
    never = threading.Event()
    with pytest.raises(Gone):
        leave("", 1, [never.wait])
    never.set()


@pytest.mark.usefixtures("ends")
def test_one_that_others_still_ask_stays_as_long_as_it_was_told() -> None:
    before = time.monotonic()
    with pytest.raises(Gone):
        leave("", 1, [], linger=0.2)
    assert time.monotonic() - before >= 0.2
