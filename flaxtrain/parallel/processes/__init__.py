"""Several processes that train one model: joining them, agreeing, and watching one another."""

from flaxtrain.parallel.processes.agreement import (
    agree,
    decided,
    disagreement,
    raise_disagreement,
)
from flaxtrain.parallel.processes.coordination import ServiceLost
from flaxtrain.parallel.processes.joining import NoPeers, Processes, initialize, peer_watch
from flaxtrain.parallel.processes.meeting import barrier, is_writer, until_process_0_is_done
from flaxtrain.parallel.processes.one_number import of_process_0
from flaxtrain.parallel.processes.watch import PeerWatch

__all__ = [
    "NoPeers",
    "PeerWatch",
    "Processes",
    "ServiceLost",
    "agree",
    "barrier",
    "decided",
    "disagreement",
    "initialize",
    "is_writer",
    "of_process_0",
    "peer_watch",
    "raise_disagreement",
    "until_process_0_is_done",
]
