"""Data sets: batching, padding, prefetching, and what the training loop sees of any of them."""

from flaxtrain.data.batch_file import load_batch, save_batch
from flaxtrain.data.batches import ArrayBatches, batches
from flaxtrain.data.digits import digits
from flaxtrain.data.inputs import example_weights, model_inputs, target
from flaxtrain.data.padding import HostBatch, pad
from flaxtrain.data.prefetch import Prefetcher, prefetch
from flaxtrain.data.stream import DEFAULT_BATCH_SIZE, Stream, as_stream, is_arrays

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "ArrayBatches",
    "HostBatch",
    "Prefetcher",
    "Stream",
    "as_stream",
    "batches",
    "digits",
    "example_weights",
    "is_arrays",
    "load_batch",
    "model_inputs",
    "pad",
    "prefetch",
    "save_batch",
    "target",
]
