"""The texts that all processes of a run see: JAX's coordination service, behind one class.

JAX starts the service in process 0 for itself, and has no public door to it. Every private name
of JAX that several processes need is used in this file, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jax._src import clusters, distributed, xla_bridge

from flaxtrain.errors import ProcessError

__all__ = [
    "JaxStore",
    "ServiceLost",
    "Store",
    "backend_is_up",
    "cluster_is_known",
    "connect",
    "host",
    "store",
]

# JAX's own limit, which ends a process without a word of Python, stays the last resort.
_JAX_HEARTBEAT_SECONDS = 100


class ServiceLost(Exception):
    """The coordination service does not answer: process 0, which hosts it, is gone."""


@runtime_checkable
class Store(Protocol):
    """Texts under names, the same for all processes."""

    def put(self, key: str, text: str) -> None:
        """Writes a text; replaces the one before."""
        ...

    def add(self, key: str, text: str) -> bool:
        """Writes a text, unless there is one: then returns False."""
        ...

    def get(self, key: str, seconds: float) -> str | None:
        """Returns a text as soon as it is there; None if it is not there in time."""
        ...

    def under(self, prefix: str) -> dict[str, str]:
        """Returns all texts whose names begin with `prefix/`, by the rest of their names."""
        ...


class JaxStore:
    """The store of JAX's coordination service; see `Store`.

    Args:
        client: JAX's connection to the service.

    Raises:
        ServiceLost: the service does not answer, in every method.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, key: str, text: str) -> None:
        """Writes a text; replaces the one before."""
        _answer(self._client.key_value_set, key, text, True)

    def add(self, key: str, text: str) -> bool:
        """Writes a text, unless there is one: then returns False."""
        return _answer(self._client.key_value_set, key, text)[0] != "ALREADY_EXISTS"

    def get(self, key: str, seconds: float) -> str | None:
        """Returns a text as soon as it is there; None if it is not there in time."""
        if seconds <= 0:
            return _answer(self._client.key_value_try_get, key)[1]
        return _answer(self._client.blocking_key_value_get, key, int(seconds * 1000) + 1)[1]

    def under(self, prefix: str) -> dict[str, str]:
        """Returns all texts whose names begin with `prefix/`, by the rest of their names."""
        found = _answer(self._client.key_value_dir_get, f"{prefix}/")[1]
        return {key.removeprefix(f"{prefix}/"): text for key, text in found or ()}

    def meet(self, name: str, seconds: float) -> bool:
        """Waits for all processes to call this; returns False if they don't in time."""
        status, _ = _answer(self._client.wait_at_barrier, name, int(seconds * 1000) + 1)
        return status == "OK"


def _answer(call: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """Returns the status of a call, and its value where it has one."""
    try:
        return "OK", call(*args)
    except RuntimeError as error:
        status = str(error).partition(":")[0]
        if status in ("NOT_FOUND", "DEADLINE_EXCEEDED", "ALREADY_EXISTS"):
            return status, None
        raise ServiceLost(str(error).partition("\n")[0]) from error


def store() -> tuple[JaxStore, int, int] | None:
    """Returns the store, this process's number and their count; None for a process alone."""
    state = distributed.global_state
    if state.client is None:
        return None
    return JaxStore(state.client), state.process_id, state.num_processes


def host() -> str:
    """Returns the name or address of the machine of process 0."""
    address = distributed.global_state.coordinator_address or "localhost"
    return address.rpartition(":")[0].strip("[]")


def backend_is_up() -> bool:
    """Whether JAX has looked for its devices already: too late to join other processes."""
    return xla_bridge.backends_are_initialized()


def cluster_is_known() -> bool:
    """Whether JAX knows by itself which processes belong together (Slurm, TPU pods, ...)."""
    kinds = clusters.ClusterEnv._cluster_types
    return "JAX_COORDINATOR_ADDRESS" in os.environ or any(
        kind.is_env_present() for kind in kinds if not kind.opt_in_only_method
    )


def connect(
    coordinator: str | None, processes: int | None, process: int | None, *, timeout: float
) -> None:
    """Starts the service in process 0, and connects this process to it.

    Args:
        coordinator: `host:port` of process 0; None, like the other two, is left to JAX.
        processes: how many there are.
        process: the number of this one.
        timeout: seconds until all of them must have come.

    Raises:
        ProcessError: JAX refuses. When it waits in vain, it ends the process.
    """
    # JAX's notifier takes SIGTERM for itself, and the process would no longer end by it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=max(1, round(timeout)),
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(
            f"the processes can't be joined: {str(error).partition(chr(10))[0]}",
            where=f"initialize(coordinator={coordinator!r}, process={process})",
            fix="see what JAX says above",
        ) from error
