"""Where functions are compiled and batches placed: `jit` and donation happen here only."""

from flaxtrain.parallel.agreement import agree
from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.parallel.devices import Devices
from flaxtrain.parallel.engine import ONE_DEVICE, Engine, OneDevice
from flaxtrain.parallel.global_arrays import gathered, global_batch, is_held_here, local_rows
from flaxtrain.parallel.layout import Layout
from flaxtrain.parallel.layout_table import DeviceBytes, LayoutRow, LayoutTable
from flaxtrain.parallel.mesh import AnyMesh, abstract_mesh, batch_axes, batch_shards, make_mesh
from flaxtrain.parallel.one_number import of_process_0
from flaxtrain.parallel.peer_watch import Heartbeat
from flaxtrain.parallel.place import place
from flaxtrain.parallel.processes import (
    Alone,
    Processes,
    barrier,
    heartbeat,
    initialize,
    is_writer,
    until_process_0_is_done,
)
from flaxtrain.parallel.sharding import Sharding

__all__ = [
    "ONE_DEVICE",
    "Alone",
    "AnyMesh",
    "Compiled",
    "DeviceBytes",
    "Devices",
    "Engine",
    "Heartbeat",
    "Layout",
    "LayoutRow",
    "LayoutTable",
    "OneDevice",
    "Processes",
    "Sharding",
    "abstract_mesh",
    "agree",
    "barrier",
    "batch_axes",
    "batch_shards",
    "compiled",
    "gathered",
    "global_batch",
    "heartbeat",
    "initialize",
    "is_held_here",
    "is_writer",
    "local_rows",
    "make_mesh",
    "of_process_0",
    "place",
    "until_process_0_is_done",
]
