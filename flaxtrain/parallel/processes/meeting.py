"""Points in a program that all processes come to, and what only one of them does."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import jax

from flaxtrain.errors import ProcessError
from flaxtrain.parallel.processes import coordination
from flaxtrain.parallel.processes.coordination import Store

__all__ = ["awaited", "barrier", "is_writer", "until_process_0_is_done"]

_PASSED: dict[str, itertools.count[int]] = {}
# How long the others wait for work of process 0: until it begins, and until it is done.
_BEGIN_SECONDS, _WORK_SECONDS = 120.0, 3600.0


def is_writer() -> bool:
    """Whether this process is the one that writes event files, checkpoints and the console.

    Example:
        >>> is_writer()
        True
    """
    return jax.process_index() == 0


def barrier(name: str, *, timeout: float = 300.0) -> None:
    """Waits until every process has come to the same point; returns at once for one alone.

    Args:
        name: of the point, the same in all processes. It can be passed more than once.
        timeout: seconds to wait.

    Raises:
        ProcessError: not all of them came in time.

    Example:
        >>> barrier("before the first step")
    """
    found = coordination.store()
    if found is None:
        return
    count = next(_PASSED.setdefault(name, itertools.count()))
    if not found[0].meet(f"flaxtrain/{name}/{count}", timeout):
        raise ProcessError(
            f"not all processes came within {timeout:g} seconds",
            where=f"barrier({name!r})",
            fix="let every process come to it; a longer timeout= waits longer",
        )


@contextlib.contextmanager
def until_process_0_is_done(name: str) -> Iterator[None]:
    """A context at a point that all processes come to; all leave it after process 0.

    Process 0 waits for nobody: it does not matter to it whether the others come. These wait for
    two minutes until it comes, and for an hour then.

    Args:
        name: of the point, the same in all processes. It can be passed more than once.

    Example:
        >>> with until_process_0_is_done("the export"):
        ...     pass
    """
    found = coordination.store()
    if found is None:
        yield
        return
    store, index, _ = found
    key = f"flaxtrain/{name}/{next(_PASSED.setdefault(name, itertools.count()))}"
    if index == 0:
        store.put(f"{key}/begun", "yes")
    try:
        yield
    finally:
        if index == 0:
            store.put(f"{key}/done", "yes")
        elif awaited(store, f"{key}/begun", _BEGIN_SECONDS) is not None:
            awaited(store, f"{key}/done", _WORK_SECONDS)


def awaited(
    store: Store, key: str, seconds: float, look: Callable[[], object] | None = None
) -> str | None:
    """Returns a text when it is there, None if it is not in time.

    In short calls: Ctrl-C is noticed between two of them.

    Args:
        store: where it is.
        key: its name.
        seconds: how long to wait.
        look: called between two of them; what it raises ends the waiting.
    """
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        if look is not None:
            look()
        text = store.get(key, min(1.0, max(0.0, left)))
        if text is not None or left <= 0:
            return text
