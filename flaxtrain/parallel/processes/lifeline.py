"""A connection that breaks when process 0 dies, beside those of JAX.

JAX's client ends its process 0.3 s after it notices that, and it notices in the thread that
hands out answers: who waits for one gets none. A socket of our own is told by the kernel.
"""

from __future__ import annotations

import contextlib
import socket
import time

from flaxtrain.parallel.processes.coordination import Store

__all__ = ["hold_on", "offer"]

_KEY = "flaxtrain/lifeline"
_SECONDS = 10.0
# Process 0 may come to its work later than the others.
_START_SECONDS = 120.0
# Those that broke stay in the kernel's queue of process 0, which is not endless.
_CONNECTIONS = 20
# Nobody accepts: the kernel makes the connections, and breaks them when the process ends.
_OFFERED: list[socket.socket] = []


def offer(store: Store) -> None:
    """Opens a port in process 0, for as long as it lives, and tells the others which.

    Args:
        store: where they look for it.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=both, backlog=socket.SOMAXCONN
        )
    except OSError:
        store.put(_KEY, "0")
        return
    _OFFERED.append(server)
    store.put(_KEY, str(server.getsockname()[1]))


def hold_on(store: Store, host: str) -> bool:
    """Holds a connection to process 0; returns when it is known whether process 0 is gone.

    A connection that breaks is made anew: whatever is on the way may have forgotten it.

    Args:
        store: where process 0 says its port.
        host: that of process 0.

    Returns:
        Whether the connection broke, and process 0 does not take another one. False where a
        firewall lets none through, or where they break again and again.
    """
    port = _port(store)
    if not port:
        return False
    for attempt in range(_CONNECTIONS):
        try:
            line = socket.create_connection((host, port), timeout=_SECONDS)
        except (ConnectionRefusedError, TimeoutError):
            return attempt > 0
        except OSError:  # says more about the network than about process 0
            return False
        with line, contextlib.suppress(OSError):
            _wait_until_it_breaks(line)
    return False


def _port(store: Store) -> int:
    """Returns the port of process 0, 0 if it offers none in time."""
    until = time.monotonic() + _START_SECONDS
    # No call that waits: in one of them a thread may not be when the interpreter ends.
    while (text := store.get(_KEY, 0)) is None:
        if time.monotonic() > until:
            return 0
        time.sleep(0.1)
    return int(text)


def _wait_until_it_breaks(line: socket.socket) -> None:
    line.settimeout(None)
    # Routers forget connections on which nothing is said.
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    line.recv(1)
