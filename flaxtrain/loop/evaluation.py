"""Evaluation and prediction over a whole data set, exact for any batch size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxtrain.checks import check_choice
from flaxtrain.data import HostBatch, Stream, prefetch
from flaxtrain.errors import StateError
from flaxtrain.loop.in_flight import Bounded
from flaxtrain.loop.padding import check_padding, checked_mask
from flaxtrain.loop.several_processes import agree_on_batches
from flaxtrain.loop.step_programs import EvalProgram
from flaxtrain.loop.window import as_numbers
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.engine import Engine
from flaxtrain.precision import UNSCALED
from flaxtrain.train import (
    NoAverage,
    Recipe,
    TrainState,
    check_labels,
    eval_state,
    eval_step,
)
from flaxtrain.typing import Array, HostTree

__all__ = [
    "check_evaluation",
    "checked",
    "evaluate",
    "for_evaluation",
    "predict",
    "with_weights",
]

WEIGHTS = ("raw", "ema", "both")
"""The weights that can be evaluated: the trained ones, their average, both."""


def with_weights(state: TrainState, weights: str, *, where: str) -> TrainState:
    """Returns the state with the weights asked for.

    Args:
        state: the training state.
        weights: `"raw"`, the trained weights, or `"ema"`, their average.
        where: the method that was called.

    Raises:
        UnknownNameError: `weights` is another word.
        StateError: there is no average (yet).
    """
    check_choice("weights", weights, WEIGHTS[:2], where=where)
    if weights == "raw":
        return state
    if isinstance(state.ema, NoAverage):
        raise StateError(
            "no average of the weights is kept",
            where=f"{where}(weights={weights!r})",
            fix="pass OptSpec(ema=0.999) or another average when the trainer is made",
        )
    if not state.ema.begun:
        raise StateError(
            f"the average {state.ema.rule!r} has not begun after {int(state.step)} updates",
            where=f"{where}(weights={weights!r})",
            fix="train longer, or let it begin earlier",
        )
    return eval_state(state)


def check_evaluation(recipe: Recipe, stream: Stream) -> None:
    """Runs one evaluation step abstractly: what is wrong is found before hours of training.

    Raises:
        FlaxtrainError: as `evaluate` on the first batch of `stream`.
    """
    check_padding(recipe, stream)
    first = stream.example()
    mask = checked_mask(recipe, stream, first, always=True)
    jax.eval_shape(partial(eval_step, recipe), jax.eval_shape(recipe.init), first.data, mask)


def evaluate(
    recipe: Recipe,
    program: EvalProgram,
    state: TrainState,
    stream: Stream,
    weights: str | None = None,
) -> dict[str, float]:
    """Returns loss and metrics over one epoch of `stream`.

    Args:
        recipe: what does not change in the run.
        program: the compiled evaluation step.
        state: the training state.
        stream: the data; it is read once.
        weights: `"raw"`, `"ema"`, or `"both"`: then the numbers of the averaged weights have
            names such as `loss/ema`; None: both, where there is an average.

    Raises:
        LossError: a batch has padding rows and the loss or a metric is a scalar.
        ProcessError: not all processes have equally many batches.
        StateError: there is no average (yet).
        UnknownNameError: `weights` is another word.
    """
    if weights is None:
        weights = "both" if state.ema.begun else "raw"
    check_choice("weights", weights, WEIGHTS, where="evaluate")
    chosen = {"": "raw", "/ema": "ema"} if weights == "both" else {"": weights}
    states = {
        suffix: program.engine.place_state(
            for_evaluation(with_weights(state, which, where="evaluate"))
        )
        for suffix, which in chosen.items()
    }
    windows: dict[str, Any] = {}
    in_flight: Bounded[Array] = Bounded()
    seen = 0
    agree_on_batches(stream.batches_per_epoch, "evaluate")
    for batch in prefetch(checked(recipe, stream.epoch(0), "evaluation"), program.step.place):
        seen += 1
        mask = checked_mask(recipe, stream, batch, always=True)
        for suffix, own in states.items():
            if suffix not in windows:
                windows[suffix] = program.empty_window(own, batch.data, mask)
            windows[suffix], token = program.step(own, windows[suffix], batch.data, mask)
            for oldest in in_flight.add(token):
                oldest.block_until_ready()
    agree_on_batches(seen, "evaluate", list(in_flight))
    numbers: dict[str, float] = {}
    for suffix, window in windows.items():
        found = as_numbers(jax.device_get(program.finish(window)[0]))
        numbers |= {f"{name}{suffix}": value for name, value in found.items()}
    return numbers


def for_evaluation(state: TrainState) -> TrainState:
    """Returns what evaluation reads of a state: one program serves all phases and weights."""
    return TrainState(
        step=state.step,
        params=state.params,
        collections=state.collections,
        rng=state.rng,
        counters=state.counters,
        opt_state=(),
        loss_scale=UNSCALED,
        apply_fn=None,
        tx=None,
    )


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


def predict(
    program: Compiled, state: TrainState, stream: Stream, weights: str, engine: Engine
) -> HostTree:
    """Returns the model's outputs for one epoch of `stream`, in order, without padding.

    Args:
        program: the compiled function from state and batch to output.
        state: the training state.
        stream: the data; it is read once.
        weights: `"raw"` or `"ema"`.
        engine: where the program runs.

    Raises:
        ProcessError: not all processes have equally many batches.
        StateError: there is no average (yet).
        UnknownNameError: `weights` is another word.
    """
    outputs: list[Any] = []
    in_flight: Bounded[tuple[Any, Any]] = Bounded()
    state = engine.place_state(for_evaluation(with_weights(state, weights, where="predict")))

    def collect(output: Any, mask: Any) -> None:
        output, real = jax.device_get(engine.readable((output, mask)))
        outputs.append(jax.tree.map(lambda leaf: np.asarray(leaf)[real], output))

    seen = 0
    agree_on_batches(stream.batches_per_epoch, "predict")
    for batch in prefetch(stream.epoch(0), program.place):
        seen += 1
        for oldest in in_flight.add((program(state, batch.data), batch.mask)):
            collect(*oldest)
    agree_on_batches(seen, "predict", list(in_flight), together=False)
    for left in in_flight.rest():
        collect(*left)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
