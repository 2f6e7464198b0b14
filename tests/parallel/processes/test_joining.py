from __future__ import annotations

import threading
import time
from typing import Any

import jax
import pytest

from flaxtrain import parallel
from flaxtrain.errors import ArgumentError, ArgumentTypeError, ProcessError
from flaxtrain.parallel import Processes, initialize, peer_watch
from flaxtrain.parallel.processes import agree, joining
from tests.parallel.processes.together import Texts


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.delenv(f"FLAXTRAIN_{name}", raising=False)


def test_a_process_alone_needs_nothing_and_does_nothing() -> None:
    assert initialize() == initialize(processes=1) == Processes(0, 1)
    assert not jax.distributed.is_initialized()
    with pytest.raises(KeyError), peer_watch().guard():
        raise KeyError
    parallel.barrier("here")
    agree({"seed": 1})
    assert parallel.is_writer()


WRONG = [
    (("10.0.0.1", 2, 0), "'10.0.0.1' is no address"),
    (("10.0.0.1:http", 2, 0), "is no address"),
    (("10.0.0.1:70000", 2, 0), "is no address"),
    ((":8476", 2, 0), "is no address"),
    (("10.0.0.1:8476", 2, 2), "there is no process 2 of 2"),
    (("10.0.0.1:8476", 0, 0), "processes"),
    (("10.0.0.1:8476", 2, -1), "process"),
]


@pytest.mark.parametrize(("args", "message"), WRONG)
def test_wrong_settings_are_named(args: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        initialize(*args)


@pytest.mark.usefixtures("unchecked_types")
def test_numbers_are_numbers() -> None:
    with pytest.raises(ArgumentTypeError, match="processes"):
        initialize("10.0.0.1:8476", "2", 0)  # type: ignore[arg-type]


def test_variables_are_read_and_named_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAXTRAIN_PROCESSES", "1")
    assert initialize() == Processes(0, 1)
    monkeypatch.setenv("FLAXTRAIN_PROCESSES", "two")
    with pytest.raises(ArgumentError, match=r"'two' is no number\n.*FLAXTRAIN_PROCESSES"):
        initialize()
    assert initialize(processes=1) == Processes(0, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("127.0.0.1:1", 2), r"process missing(\n.*)*set FLAXTRAIN_PROCESS$"),
        ((None, 2, 0), r"coordinator missing(\n.*)*set FLAXTRAIN_COORDINATOR$"),
        ((None, None, 1), "coordinator and processes missing"),
    ],
)
def test_what_is_missing_is_named(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        initialize(*args)


def test_after_jax_has_looked_for_its_devices_it_is_too_late() -> None:
    jax.devices()
    with pytest.raises(ProcessError, match="JAX has looked for its devices already"):
        initialize("127.0.0.1:1", 2, 1)


def test_a_second_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(ProcessError, match="the processes are joined already"):
        initialize("127.0.0.1:1", 2, 1)


def test_the_watch_begins_before_process_0_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, reached = Texts(), threading.Event()
    monkeypatch.setattr(
        "flaxtrain.parallel.processes.coordination.store", lambda: (texts, 1, 2)
    )
    monkeypatch.setattr(joining, "hold_on", lambda store, host: reached.wait(20.0))
    for name in ("on_uncaught_error", "on_interpreter_exit"):
        monkeypatch.setattr(joining, name, lambda call: None)
    monkeypatch.setattr(joining, "_RUNNING", [])
    assert joining._watched(8.0) == Processes(1, 2)
    running = joining._RUNNING[0]
    try:
        until = time.monotonic() + 10.0
        while not texts.under("flaxtrain/beats"):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        running._done.set()
        running._wake.set()
        reached.set()
        for thread in running._threads:
            thread.join()
