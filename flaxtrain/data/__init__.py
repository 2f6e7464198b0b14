"""Data sets: batching, padding, prefetching, and what the training loop sees of any of them."""

from flaxtrain.data.alignment import AlignedStream, aligned, unaligned
from flaxtrain.data.batch_file import load_batch, save_batch
from flaxtrain.data.batches import ArrayBatches, batches
from flaxtrain.data.digits import digits
from flaxtrain.data.inputs import example_weights, model_inputs, target
from flaxtrain.data.local_rows import (
    LocalRows,
    as_given,
    batch_as_given,
    is_whole,
    local_rows_of,
    rows_as_given,
)
from flaxtrain.data.padding import HostBatch, pad
from flaxtrain.data.prefetch import Prefetcher, prefetch
from flaxtrain.data.stream import DEFAULT_BATCH_SIZE, Stream, as_stream, is_arrays

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "AlignedStream",
    "ArrayBatches",
    "HostBatch",
    "LocalRows",
    "Prefetcher",
    "Stream",
    "aligned",
    "as_given",
    "as_stream",
    "batch_as_given",
    "batches",
    "digits",
    "example_weights",
    "is_arrays",
    "is_whole",
    "load_batch",
    "local_rows_of",
    "model_inputs",
    "pad",
    "prefetch",
    "rows_as_given",
    "save_batch",
    "target",
    "unaligned",
]
