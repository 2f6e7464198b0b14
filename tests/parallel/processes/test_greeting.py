from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flaxtrain.errors import ProcessError
from flaxtrain.parallel.processes.greeting import greet
from tests.processes.running import free_port

SECONDS = 20.0


def all_greet(*who: tuple[int, int], timeout: float = SECONDS) -> list[str]:
    """Has threads call `greet(processes, process)`; returns their errors, "" for none."""
    address = f"127.0.0.1:{free_port()}"

    def error(future: Future[None]) -> str:
        found = future.exception()
        assert found is None or isinstance(found, ProcessError)
        return found.found if found else ""

    with ThreadPoolExecutor(len(who)) as pool:
        calls = [pool.submit(greet, address, *one, timeout=timeout) for one in who]
    return [error(call) for call in calls]


def test_processes_that_all_come_go_on() -> None:
    assert all_greet((3, 2), (3, 0), (3, 1)) == ["", "", ""]


def test_who_does_not_come_is_named() -> None:
    errors = all_greet((4, 0), (4, 2), timeout=1.0)
    assert errors == ["processes 1, 3 did not come within 1 seconds"] * 2


def test_two_with_one_number_are_refused() -> None:
    assert all_greet((3, 0), (3, 1), (3, 1)) == ["two processes have the number 1"] * 3


def test_those_of_another_run_are_refused() -> None:
    errors = all_greet((2, 0), (3, 1))
    assert errors == ["process 1 is one of 3 processes, process 0 one of 2"] * 2


def test_a_coordinator_that_is_not_there_is_an_error_in_time() -> None:
    with pytest.raises(ProcessError, match="process 0 can't be reached within 0"):
        greet(f"127.0.0.1:{free_port()}", 2, 1, timeout=0.3)


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ProcessError, match="can't listen"):
            greet(address, 2, 0, timeout=1.0)


@pytest.mark.parametrize("text", [b"GET / HTTP/1.0\r\n\r\n", b"[Infinity, 2]"])
def test_a_caller_that_is_no_process_is_ignored(text: bytes) -> None:
    port = free_port()

    def scan(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as call:
            call.sendall(text)

    def until_it_listens(call: Callable[[int], None]) -> None:
        for _ in range(200):
            try:
                return call(port)
            except ConnectionRefusedError:
                pass
        return None

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(greet, f"127.0.0.1:{port}", 2, 0, timeout=SECONDS)
        pool.submit(until_it_listens, scan).result()
        greet(f"127.0.0.1:{port}", 2, 1, timeout=SECONDS)
        assert first.result() is None
