"""Several processes that train one model: joining them, and which of them this one is."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax

from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentError, ProcessError
from flaxtrain.parallel import coordination
from flaxtrain.parallel.greeting import greet
from flaxtrain.parallel.leaving import on_interpreter_exit, on_uncaught_error
from flaxtrain.parallel.lifeline import hold_on, offer
from flaxtrain.parallel.peer_watch import Heartbeat

__all__ = [
    "Alone",
    "Processes",
    "barrier",
    "heartbeat",
    "initialize",
    "is_writer",
    "until_process_0_is_done",
]

_VARIABLES = {
    "coordinator": "FLAXTRAIN_COORDINATOR",
    "processes": "FLAXTRAIN_PROCESSES",
    "process": "FLAXTRAIN_PROCESS",
}
# The heartbeat of this process, if it has others; there is one service to a process.
_RUNNING: list[Heartbeat] = []
_BARRIERS: dict[str, itertools.count[int]] = {}
# How long the others wait for work of process 0: until it begins, and until it is done.
_BEGIN_SECONDS, _WORK_SECONDS = 120.0, 3600.0


class Alone:
    """The heartbeat of a process that has no others: does nothing."""

    step: int | None = None

    def progress(self, step: int) -> None:
        """Notes the step that the process has reached."""
        self.step = step

    def failing(self) -> None:
        """Does nothing: nobody else fails."""

    def guard(
        self, *flushes: Callable[[], object]
    ) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which errors are nobody else's business."""
        return contextlib.nullcontext()


_ALONE = Alone()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees it.

    Attributes:
        index: the number of this process, from 0.
        count: how many there are.

    Example:
        >>> print(Processes())
        process 0 of 1
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 120.0,
    peer_timeout: float = 8.0,
) -> Processes:
    """Joins this process to the others of a run; the first thing that a program does.

    Every process runs the same program. What is not given is taken from the environment:
    `FLAXTRAIN_COORDINATOR`, `FLAXTRAIN_PROCESSES`, `FLAXTRAIN_PROCESS`. What is not there
    either is left to JAX, which knows TPU pods, Slurm, Open MPI and Kubernetes. Where nothing
    says that there are others, a process is alone, and this does nothing.

    From here on the processes watch one another: when one is killed, stopped or fails, all the
    others end with a message that names it, and the status 75.

    Args:
        coordinator: `host:port`, the same for all: an address of process 0, and a port that is
            free there.
        processes: how many there are.
        process: the number of this one, from 0.
        timeout: seconds until all of them must have come.
        peer_timeout: seconds of silence after which a process is taken for lost, 2 or more.

    Returns:
        Which process this is, of how many.

    Raises:
        ArgumentError: an argument or a variable can't be used, or one of the three is missing.
        ProcessError: not all of them came in time; the processes are joined already; or JAX has
            looked for its devices already, so that this comes too late.

    Example:
        >>> import flaxtrain as ft
        >>> ft.parallel.initialize(processes=1)
        Processes(index=0, count=1)
    """
    check_number("timeout", timeout, minimum=1.0, where="initialize")
    check_number("peer_timeout", peer_timeout, minimum=2.0, where="initialize")
    coordinator, processes, process = _settings(coordinator, processes, process)
    nothing_said = coordinator is None and processes is None and process is None
    if processes == 1 or (nothing_said and not coordination.cluster_is_known()):
        return Processes()
    complete = coordinator is not None and processes is not None and process is not None
    if not complete and not coordination.cluster_is_known():
        raise _incomplete(coordinator, processes, process)
    _check_is_first()
    if coordinator is not None and processes is not None and process is not None:
        greet(coordinator, processes, process, timeout=timeout)
    coordination.connect(coordinator, processes, process, timeout=max(timeout, 60.0))
    return _watched(peer_timeout)


def _watched(peer_timeout: float) -> Processes:
    found = coordination.store()
    if found is None or found[2] == 1:
        return Processes()
    store, index, count = found
    running = Heartbeat(store, index, count, timeout=peer_timeout, interval=peer_timeout / 8)
    on_uncaught_error(running.uncaught)
    on_interpreter_exit(running.close)
    # The others count the seconds: the beats come first, and wait for nothing.
    _RUNNING.append(running.start())
    if index:
        running.hold(partial(hold_on, store, coordination.host()))
    else:
        offer(store)
    return Processes(index, count)


def _settings(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str | None, int | None, int | None]:
    """Fills arguments from the environment, and checks each for itself."""
    coordinator = (
        os.environ.get(_VARIABLES["coordinator"]) if coordinator is None else coordinator
    )
    processes = _number("processes") if processes is None else processes
    process = _number("process") if process is None else process
    if processes is not None:
        check_integer("processes", processes, minimum=1, where="initialize")
    if process is not None:
        check_integer("process", process, minimum=0, where="initialize")
    if process is not None and processes is not None and process >= processes:
        raise ArgumentError(
            f"there is no process {process} of {processes}",
            where="initialize(processes, process)",
            fix=f"number them from 0 to {processes - 1}",
        )
    if coordinator is not None:
        _check_address(coordinator)
    return coordinator, processes, process


def _number(name: str) -> int | None:
    text = os.environ.get(_VARIABLES[name])
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise ArgumentError(
            f"{text!r} is no number",
            where=f"the environment variable {_VARIABLES[name]}",
            fix="set it to a number, or unset it",
        )
    return int(text)


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ArgumentError(
            f"{coordinator!r} is no address",
            where="initialize(coordinator)",
            fix="write host:port, as in 10.0.0.1:8476",
        )


def _check_is_first() -> None:
    if jax.distributed.is_initialized():
        raise ProcessError(
            "the processes are joined already",
            where="initialize",
            fix="call it once, and jax.distributed.initialize not at all",
        )
    if coordination.backend_is_up():
        raise ProcessError(
            "JAX has looked for its devices already, and knows those of this process alone",
            where="initialize",
            fix="call it before anything that makes an array or asks for devices",
        )


def _incomplete(
    coordinator: str | None, processes: int | None, process: int | None
) -> ArgumentError:
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    return ArgumentError(
        f"{' and '.join(missing)} missing",
        where="initialize",
        fix=f"pass {missing[0]}=, or set {_VARIABLES[missing[0]]}",
    )


def heartbeat() -> Heartbeat | Alone:
    """Returns what tells the other processes of this one's steps and errors.

    Where `jax.distributed.initialize` was called, not `initialize`, the watch begins here.

    Example:
        >>> with heartbeat().guard():
        ...     heartbeat().progress(37)
    """
    if not _RUNNING:
        _watched(peer_timeout=8.0)
    return _RUNNING[0] if _RUNNING else _ALONE


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
    count = next(_BARRIERS.setdefault(name, itertools.count()))
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
    key = f"flaxtrain/{name}/{next(_BARRIERS.setdefault(name, itertools.count()))}"
    if index == 0:
        store.put(f"{key}/begun", "yes")
    try:
        yield
    finally:
        if index == 0:
            store.put(f"{key}/done", "yes")
        elif _comes(store, f"{key}/begun", _BEGIN_SECONDS):
            _comes(store, f"{key}/done", _WORK_SECONDS)


def _comes(store: coordination.Store, key: str, seconds: float) -> bool:
    """Waits for a text, in short calls: Ctrl-C is noticed between two of them."""
    until = time.monotonic() + seconds
    while store.get(key, 1.0) is None:
        if time.monotonic() > until:
            return False
    return True
