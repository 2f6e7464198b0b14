"""The hook of the evaluations that `fit` was asked for."""

from __future__ import annotations

from flaxtrain.data import Stream, is_arrays
from flaxtrain.loop.arguments import FitCall
from flaxtrain.loop.evaluation import check_evaluation
from flaxtrain.loop.hooks import Evaluate, Hook
from flaxtrain.loop.streams import on_devices, stream_in_order
from flaxtrain.parallel.devices import Devices
from flaxtrain.train import Recipe

__all__ = ["evaluation_hooks"]


def evaluation_hooks(
    recipe: Recipe, training: Stream, call: FitCall, devices: Devices
) -> tuple[Hook, ...]:
    """Returns the hook that evaluates, once its data set was looked at; none without one.

    Args:
        recipe: what does not change in the run.
        training: the training data. Where the length of its epochs is known, the default is one
            evaluation for each, otherwise one at the end.
        call: the arguments of `fit`.
        devices: what a batch is spread over.

    Raises:
        FlaxtrainError: the first batch can't be evaluated.
    """
    if call.eval_ds is None:
        return ()
    size = call.batch_size if is_arrays(call.eval_ds) else None
    stream = stream_in_order(call.eval_ds, size)
    check_evaluation(recipe, on_devices(stream, devices))
    default = None if training.batches_per_epoch is None else "1ep"
    return (Evaluate(stream, default if call.eval_every is None else call.eval_every),)
