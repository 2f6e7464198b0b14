"""Evaluation and prediction over a whole data set, exact for any batch size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxtrain.data import HostBatch, Stream, prefetch
from flaxtrain.loop.length import surely_ragged
from flaxtrain.loop.window import IN_FLIGHT, EvalProgram, as_numbers
from flaxtrain.parallel import Compiled, place
from flaxtrain.train import Recipe, TrainState, check_labels, eval_step
from flaxtrain.typing import HostTree

__all__ = ["check_evaluation", "checked", "evaluate", "predict"]


def check_evaluation(recipe: Recipe, stream: Stream) -> None:
    """Runs one evaluation step abstractly: what is wrong is found before hours of training.

    Raises:
        FlaxtrainError: as `evaluate` on the first batch of `stream`.
    """
    if recipe.padding_problem is not None and surely_ragged(stream):
        raise recipe.padding_problem
    first = stream.example()
    mask = first.mask if recipe.padding_problem is None else None
    jax.eval_shape(partial(eval_step, recipe), jax.eval_shape(recipe.init), first.data, mask)


def evaluate(
    recipe: Recipe, program: EvalProgram, state: TrainState, stream: Stream
) -> dict[str, float]:
    """Returns loss and metrics over one epoch of `stream`.

    Raises:
        LossError: a batch has padding rows and the loss or a metric is a scalar.
    """
    masked = recipe.padding_problem is None
    state = _without_optimizer(state)
    window: Any = None
    in_flight: deque[Any] = deque()
    for batch in prefetch(checked(recipe, stream.epoch(0), "evaluation"), place):
        if batch.count < stream.rows and recipe.padding_problem is not None:
            raise recipe.padding_problem
        mask = batch.mask if masked else None
        if window is None:
            window = program.empty_window(state, batch.data, mask)
        window, token = program.step(state, window, batch.data, mask)
        in_flight.append(token)
        if len(in_flight) > IN_FLIGHT:
            in_flight.popleft().block_until_ready()
    values, _, _ = program.finish(window)
    return as_numbers(jax.device_get(values))


def _without_optimizer(state: TrainState) -> TrainState:
    """What differs between the phases of a run is left out: one program serves all of them."""
    return state.replace(opt_state=(), tx=None, trainable=None)


def checked(
    recipe: Recipe, batches: Iterator[HostBatch], where: str, first: int = 0
) -> Iterator[HostBatch]:
    """Passes host batches on, and refuses class labels that the model can't predict."""
    classes = (
        recipe.output.shape[-1] if recipe.output is not None and recipe.output.shape else 0
    )
    for index, batch in enumerate(batches, start=first):
        if classes:
            check_labels(
                recipe.supervised, batch.data, classes, where=f"{where}, batch {index}"
            )
        yield batch


def predict(program: Compiled, state: TrainState, stream: Stream) -> HostTree:
    """Returns the model's outputs for one epoch of `stream`, in order, without padding."""
    outputs: list[Any] = []
    in_flight: deque[tuple[Any, int]] = deque()
    state = _without_optimizer(state)

    def collect() -> None:
        output, count = in_flight.popleft()
        outputs.append(
            jax.tree.map(lambda leaf: np.asarray(leaf)[:count], jax.device_get(output))
        )

    for batch in prefetch(stream.epoch(0), place):
        in_flight.append((program(state, batch.data), batch.count))
        if len(in_flight) > IN_FLIGHT:
            collect()
    while in_flight:
        collect()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
