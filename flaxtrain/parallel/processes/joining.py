"""Several processes that train one model: joining them, and which of them this one is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax

from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentError, ProcessError
from flaxtrain.parallel.processes import coordination
from flaxtrain.parallel.processes.greeting import greet
from flaxtrain.parallel.processes.leaving import on_interpreter_exit, on_uncaught_error
from flaxtrain.parallel.processes.lifeline import hold_on, offer
from flaxtrain.parallel.processes.watch import PeerWatch

__all__ = [
    "NoPeers",
    "Processes",
    "initialize",
    "peer_watch",
]

_VARIABLES = {
    "coordinator": "FLAXTRAIN_COORDINATOR",
    "processes": "FLAXTRAIN_PROCESSES",
    "process": "FLAXTRAIN_PROCESS",
}
# The watch of this process, if it has others; there is one service to a process.
_RUNNING: list[PeerWatch] = []


class NoPeers:
    """The watch of a process that has no others: does nothing."""

    alone = True
    batches: int | None = None

    def progress(self, batches: int) -> None:
        """Notes how many batches the process has taken."""
        self.batches = batches

    def run(self) -> contextlib.AbstractContextManager[object]:
        """Returns a context for a run."""
        return contextlib.nullcontext()

    def ends(self, batches: int, wanted: bool) -> bool:
        """Whether the run ends with its last batch so far: if it is wanted."""
        return wanted

    def ahead(self, batches: int) -> int | None:
        """Returns None: nobody is."""
        return None

    def failing(self, error: BaseException | None = None) -> None:
        """Does nothing: nobody else fails."""

    def guard(
        self, *flushes: Callable[[], object]
    ) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which errors are nobody else's business."""
        return contextlib.nullcontext()


_NO_PEERS = NoPeers()


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
    running = PeerWatch(store, index, count, timeout=peer_timeout, interval=peer_timeout / 8)
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


def peer_watch() -> PeerWatch | NoPeers:
    """Returns what tells the other processes of this one's batches and errors.

    Where `jax.distributed.initialize` was called, not `initialize`, the watch begins here.

    Example:
        >>> with peer_watch().guard():
        ...     peer_watch().progress(37)
    """
    if not _RUNNING:
        _watched(peer_timeout=8.0)
    return _RUNNING[0] if _RUNNING else _NO_PEERS
