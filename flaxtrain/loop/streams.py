"""From what a user passes as a data set to a stream, with what was decided on the way."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from flaxtrain.data import ArrayBatches, Stream, as_stream, is_arrays
from flaxtrain.data.alignment import aligned
from flaxtrain.data.local_rows import is_whole, local_rows_of
from flaxtrain.errors import ArgumentError
from flaxtrain.parallel.devices import Devices

__all__ = ["on_devices", "shards_of_each", "stream_in_order", "training_stream"]


def on_devices(stream: Stream, devices: Devices, microbatches: int = 1) -> Stream:
    """Returns a stream whose batches divide among the devices, with this process's rows.

    Args:
        stream: the data, as the user gave them.
        devices: what a batch is spread over.
        microbatches: number of microbatches in a batch.

    Raises:
        ArgumentError: each process has its own rows, and the mesh does not: `shards_of_each`.
    """
    if devices.processes == 1:
        return aligned(stream, devices.multiple, microbatches)
    if is_whole(stream):
        multiple = devices.multiple
    else:
        multiple = shards_of_each(devices.shards_by_process(), devices.processes)
    stream = aligned(stream, multiple, microbatches)
    return local_rows_of(stream, devices.processes, devices.local_rows)


def shards_of_each(held: Mapping[int, Set[int]], processes: int) -> int:
    """Returns how many shards of a batch each process has, where none has another's.

    Args:
        held: the numbers of the shards on the devices of each process.
        processes: how many there are.

    Raises:
        ArgumentError: two processes have the same shard, or not equally many, or one has none.

    Example:
        >>> shards_of_each({0: {0, 2}, 1: {1, 3}}, 2)
        2
    """
    owners: dict[int, int] = {}
    for process in range(processes):
        shards = held.get(process, set())
        first = {owners.setdefault(shard, process) for shard in shards} - {process}
        if first:
            raise _not_apart(f"processes {min(first)} and {process} share rows")
        if not shards:
            raise _not_apart(f"the mesh has no device of process {process}")
        if len(shards) != len(held[0]):
            counts = f"{len(held[0])} and {len(shards)} shards of a batch"
            raise _not_apart(f"processes 0 and {process} have {counts}")
    return len(held[0])


def _not_apart(found: str) -> ArgumentError:
    return ArgumentError(
        f"{found}, and each yields rows of its own",
        where="Trainer(mesh=...)",
        fix="pass arrays, or let data x fsdp be a multiple of the processes, with the axis "
        "'model' last and within a process",
    )


def training_stream(ds: Any, batch_size: int | None, seed: int) -> tuple[Stream, list[str]]:
    """Returns the stream of a data set to train on, and the choices made for it, as sentences.

    Args:
        ds: as for `Trainer.fit`; arrays are shuffled in every epoch.
        batch_size: for arrays only; default 128.
        seed: decides the order of arrays.
    """
    stream = as_stream(ds, batch_size=batch_size, shuffle=True, seed=seed)
    if batch_size is None and is_arrays(ds):
        return stream, [f"batch_size= was not given: {stream.rows}"]
    return stream, []


def stream_in_order(ds: Any, batch_size: int | None) -> Stream:
    """Returns the stream of a data set to evaluate on: one pass, never shuffled.

    Args:
        ds: as for `Trainer.evaluate`.
        batch_size: for arrays only; default 128.
    """
    if isinstance(ds, ArrayBatches):
        ds = ds.in_order()
    return as_stream(ds, batch_size=batch_size, shuffle=False, seed=0)
