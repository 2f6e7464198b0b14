"""A connection that breaks when process 0 dies, beside those of JAX.

JAX's client ends its process 0.3 s after it notices that, and it notices in the thread that
hands out answers: who waits for one gets none. A socket of our own is told by the kernel.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from flaxtrain.parallel.coordination import Store

__all__ = ["hold_on", "offer"]

_KEY = "flaxtrain/lifeline"
_SECONDS = 10.0
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


def hold_on(store: Store, host: str) -> Callable[[], bool]:
    """Connects to process 0; returns a function that waits until the connection breaks.

    That function returns whether it broke: False at once where a firewall lets none through.

    Args:
        store: where process 0 has said its port.
        host: that of process 0.
    """
    port = int(store.get(_KEY, _SECONDS) or 0)
    line: socket.socket | None = None
    with contextlib.suppress(OSError):
        if port:
            line = socket.create_connection((host, port), timeout=_SECONDS)
            line.settimeout(None)
            # Routers forget connections on which nothing is said.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)

    def broken() -> bool:
        if line is None:
            return False
        with contextlib.suppress(OSError):
            line.recv(1)
        return True

    return broken
