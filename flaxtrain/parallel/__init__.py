"""Where steps are compiled, and batches and states placed: donation happens here only."""

from flaxtrain.parallel.global_arrays import gathered
from flaxtrain.parallel.layout import DeviceBytes, Layout, LayoutRow, LayoutTable
from flaxtrain.parallel.mesh import abstract_mesh, make_mesh
from flaxtrain.parallel.processes import (
    NoPeers,
    PeerWatch,
    Processes,
    barrier,
    initialize,
    is_writer,
    peer_watch,
)
from flaxtrain.parallel.sharding import Sharding

__all__ = [
    "DeviceBytes",
    "Layout",
    "LayoutRow",
    "LayoutTable",
    "NoPeers",
    "PeerWatch",
    "Processes",
    "Sharding",
    "abstract_mesh",
    "barrier",
    "gathered",
    "initialize",
    "is_writer",
    "make_mesh",
    "peer_watch",
]
