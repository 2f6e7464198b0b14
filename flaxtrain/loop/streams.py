"""From what a user passes as a data set to a stream, with what was decided on the way."""

from __future__ import annotations

from typing import Any

from flaxtrain.data import (
    ArrayBatches,
    Stream,
    aligned,
    as_stream,
    is_arrays,
    is_whole,
    local_rows_of,
)
from flaxtrain.parallel import Devices

__all__ = ["on_devices", "stream_in_order", "training_stream"]


def on_devices(stream: Stream, devices: Devices, parts: int = 1) -> Stream:
    """Returns a stream whose batches divide among the devices, with this process's rows.

    Args:
        stream: the data, as the user gave them.
        devices: what a batch is spread over.
        parts: number of microbatches in a batch.
    """
    if devices.processes == 1:
        return aligned(stream, devices.multiple, parts)
    shards = 1 if is_whole(stream) else devices.processes
    stream = aligned(stream, devices.multiple // shards, parts)
    return local_rows_of(stream, devices.processes, devices.local_rows)


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
