"""Do all processes come? Asked in plain TCP, on the port that JAX's service gets afterwards.

JAX ends a process from within C++ when the others don't come in time. Here a start that fails
is an error in Python, and says who is missing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterable, Iterator

from flaxtrain.errors import ProcessError

__all__ = ["greet"]

_GO = b"go\n"
_LINE = 512  # bytes of a greeting, at most
_FIX = (
    "start every process with the same coordinator, an address of process 0 that all reach and "
    "a port that is free there; a longer timeout= waits longer"
)


def greet(coordinator: str, processes: int, process: int, *, timeout: float) -> None:
    """Returns when all processes have called this; process 0 listens, the others call it.

    Args:
        coordinator: `host:port` of process 0.
        processes: how many there are.
        process: the number of this one.
        timeout: seconds to wait.

    Raises:
        ProcessError: one did not come in time, two have the same number, or they don't agree
            how many they are.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + timeout
    if process == 0:
        _receive(int(port), processes, until, timeout)
    else:
        _call(host.strip("[]"), int(port), processes, process, until, timeout)


def _receive(port: int, processes: int, until: float, timeout: float) -> None:
    """Waits for one call of each other process, then tells all of them to go on."""
    where = f"process 0, port {port}"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(port, where))
        callers: list[socket.socket] = []
        missing, refusal = list(range(1, processes)), ""
        while missing and not refusal:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                caller = stack.enter_context(server.accept()[0])
            except TimeoutError:
                refusal = f"{_named(missing)} did not come within {timeout:g} seconds"
                break
            hello = _hello(caller)
            if hello is not None:
                callers.append(caller)
                refusal = _refusal(hello, processes, missing)
                missing = [process for process in missing if process != hello[0]]
        for caller in callers:
            _answer(caller, refusal)
    if refusal:
        raise ProcessError(refusal, where=where, fix=_FIX)


def _server(port: int, where: str) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=both, backlog=socket.SOMAXCONN
        )
    except OSError as error:
        raise ProcessError(f"can't listen: {error.strerror}", where=where, fix=_FIX) from error


def _hello(caller: socket.socket) -> tuple[int, int] | None:
    """Reads who calls, and how many it thinks there are; None if it is no process of a run."""
    caller.settimeout(5.0)
    try:
        process, processes = json.loads(caller.recv(_LINE))
        return int(process), int(processes)
    except (OSError, ValueError, TypeError, OverflowError):  # the last: Infinity
        return None


def _refusal(hello: tuple[int, int], processes: int, missing: list[int]) -> str:
    process, count = hello
    if count != processes:
        return f"process {process} is one of {count} processes, process 0 one of {processes}"
    if process not in missing:
        return f"two processes have the number {process}"
    return ""


def _answer(caller: socket.socket, refusal: str) -> None:
    with contextlib.suppress(OSError):
        caller.sendall(refusal.encode() if refusal else _GO)
        # The caller hangs up first, so that no closing connection holds the port.
        caller.shutdown(socket.SHUT_WR)
        caller.recv(1)


def _call(
    host: str, port: int, processes: int, process: int, until: float, timeout: float
) -> None:
    """Calls process 0 until it listens, then waits for its answer."""
    where = f"process {process}, coordinator {host}:{port}"
    reason = "no answer"
    for left in _seconds_left(until):
        try:
            with socket.create_connection((host, port), timeout=left) as call:
                call.sendall(json.dumps([process, processes]).encode())
                call.settimeout(max(0.01, until - time.monotonic()) + 5.0)
                answer = call.recv(_LINE)
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        if answer == _GO:
            return
        if answer:
            raise ProcessError(answer.decode(errors="replace"), where=where, fix=_FIX)
    raise ProcessError(
        f"process 0 can't be reached within {timeout:g} seconds: {reason}",
        where=where,
        fix=_FIX,
    )


def _seconds_left(until: float) -> Iterator[float]:
    while (left := until - time.monotonic()) > 0:
        yield left
        time.sleep(min(0.1, left))


def _named(processes: Iterable[int]) -> str:
    first, *rest = processes
    if not rest:
        return f"process {first}"
    shown = ", ".join(map(str, [first, *rest][:8]))
    return f"processes {shown}" + (", ..." if len(rest) >= 8 else "")
