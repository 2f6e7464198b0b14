"""From what a user passes as a data set to a stream, with what was decided on the way."""

from __future__ import annotations

from typing import Any

from flaxtrain.data import ArrayBatches, Stream, as_stream, is_arrays

__all__ = ["stream_in_order", "training_stream"]


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
