"""How a process leaves that can't wait for the others: with a message, and at once.

The usual end of an interpreter is closed to it: JAX would wait there for minutes until the
others come to the same point, and they can't.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

__all__ = ["ENDED_BY_A_PEER", "exit_code", "leave", "on_interpreter_exit", "on_uncaught_error"]

ENDED_BY_A_PEER = 75
"""The exit status of a process that ends because of another one ("try again" in sysexits.h)."""

_FLUSH_SECONDS = 3.0


def leave(
    message: str, code: int, flushes: Sequence[Callable[[], object]], linger: float = 0.0
) -> None:
    """Says why, flushes what can be flushed in 3 seconds, and ends the process.

    Args:
        message: one line for standard error; empty if all has been said.
        code: the exit status.
        flushes: what is called for that, beside the usual streams and logs.
        linger: seconds that this takes at least, for a process that others still ask.
    """
    until = time.monotonic() + linger
    if message:
        # The file itself: Python's stream has a lock that a hanging thread may hold.
        with contextlib.suppress(OSError):
            os.write(2, f"flaxtrain: {message}\n".encode(errors="replace"))
    flushes = [*flushes, sys.stdout.flush, sys.stderr.flush, logging.shutdown]
    flusher = threading.Thread(target=_run, args=(flushes,), daemon=True)
    try:
        flusher.start()
        flusher.join(_FLUSH_SECONDS)
    except RuntimeError:  # too late for a new thread
        _run(flushes)
    time.sleep(max(0.0, until - time.monotonic()))
    os._exit(code)


def _run(callbacks: Sequence[Callable[[], object]]) -> None:
    for callback in callbacks:
        with contextlib.suppress(Exception):
            callback()


def exit_code(error: BaseException) -> int:
    """Returns the status with which Python would end at an error that nobody catches.

    Example:
        >>> exit_code(ValueError()), exit_code(SystemExit(3)), exit_code(KeyboardInterrupt())
        (1, 3, 130)
    """
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        return 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def on_uncaught_error(call: Callable[[BaseException, Callable[[], None]], None]) -> None:
    """Calls `call(error, show)` for an error that nobody caught; `show()` prints it."""
    before, process = sys.excepthook, os.getpid()

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        def show() -> None:
            before(kind, error, trace)

        if os.getpid() == process:
            call(error, show)
        else:  # a fork
            show()

    sys.excepthook = hook


def on_interpreter_exit(call: Callable[[], None]) -> None:
    """Calls `call` at the interpreter's end, before JAX, which was imported earlier."""
    process = os.getpid()
    atexit.register(lambda: call() if os.getpid() == process else None)
