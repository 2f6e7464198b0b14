"""Metrics between two log points: merged on the device, read once, a little late.

Nothing here waits for the device except `Report.collect`, which is called when the steps it
asks about have long been finished, or at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import LossError
from flaxtrain.metrics import Mean, Terms
from flaxtrain.metrics.monoid import compute, empty_like, merge
from flaxtrain.parallel import compiled
from flaxtrain.train import STEP_METRICS, Recipe, TrainState, eval_step, train_step
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["IN_FLIGHT", "EvalProgram", "Report", "Status", "TrainProgram", "as_numbers"]

Metrics = dict[str, Any]

IN_FLIGHT = 8
"""Steps that may be dispatched and not yet finished. Unbounded dispatch aborts the process on a
multi-device CPU, and hides how far the device is behind."""


class Status(NamedTuple):
    """Where the device was after a step, as host integers."""

    step: int
    batches: int
    skipped: int
    halted: int


class Report(NamedTuple):
    """The metrics of one window and the status at its end, still on the device."""

    values: Metrics
    weighted: dict[str, Array]
    status: Array

    def collect(self) -> tuple[Status, dict[str, float]]:
        """Waits for the window's last step and returns plain numbers.

        A metric without any weight is left out: a rejected step has none.
        """
        values, weighted, status = jax.device_get(tuple(self))
        numbers = as_numbers({name: values[name] for name in values if weighted[name]})
        return Status(*map(int, status)), numbers


def as_numbers(values: Metrics) -> dict[str, float]:
    """Turns computed metrics into Python floats.

    Raises:
        LossError: a metric is not one number.
    """
    for name, value in values.items():
        if np.size(value) != 1:
            raise LossError(
                f"metric {name!r} has shape {np.shape(value)}",
                where="metrics",
                fix="return one number per metric name",
            )
    # Compiled functions return dicts sorted by key; the loss is what a reader looks for first.
    order = sorted(values, key=lambda name: (name != "loss", name in STEP_METRICS))
    return {name: float(np.asarray(values[name]).reshape(())) for name in order}


def _empty(metrics: Metrics) -> Metrics:
    return {name: empty_like(metric) for name, metric in metrics.items()}


def _merged(window: Metrics, metrics: Metrics) -> Metrics:
    return {name: merge(window[name], metrics[name]) for name in metrics}


def _finish(window: Metrics) -> tuple[Metrics, dict[str, Array], Metrics]:
    """Returns the values of a window, which have weight, and the empty window that follows."""
    values = {name: compute(metric) for name, metric in window.items()}
    # A foreign metric does not tell its weight; without an accepted step it has none.
    stepped = _has_weight(window["grad_norm"]) if "grad_norm" in window else jnp.array(True)
    weighted = {name: _has_weight(metric) & stepped for name, metric in window.items()}
    return values, weighted, _empty(window)


def _has_weight(metric: Any) -> Array:
    terms = metric.terms if isinstance(metric, Terms) else (metric,)
    known = [jnp.asarray(term.weight) != 0 for term in terms if isinstance(term, Mean)]
    return jnp.any(jnp.stack(known)) if known else jnp.array(True)


def _status(state: TrainState) -> Array:
    counters = state.counters
    return jnp.stack([state.step, counters.batches, counters.skipped, counters.halted])


class TrainProgram:
    """The compiled training step with its window of metrics.

    `step(state, window, batch, mask, last)` returns state, window and status. The costly
    metrics are formed at log points and in batch number `last`.

    Args:
        recipe: what does not change in the run.
        log_every: number of batches between two log points.
    """

    def __init__(self, recipe: Recipe, log_every: int) -> None:
        self.log_every = log_every

        def step(
            state: TrainState,
            window: Metrics,
            batch: Batch,
            mask: ArrayLike | None,
            last: Array,
        ) -> tuple[TrainState, Metrics, Array]:
            number = state.counters.batches + 1
            due = (number % log_every == 0) | (number == last)
            state, metrics = train_step(recipe, state, batch, mask, norms=due)
            return state, _merged(window, metrics), _status(state)

        def first_window(state: TrainState, batch: Batch, mask: ArrayLike | None) -> Metrics:
            return _empty(train_step(recipe, state, batch, mask, norms=True)[1])

        self.step = compiled(step, donate=(0, 1))
        self.finish = compiled(_finish, donate=(0,))
        self._empty = _EmptyWindow(first_window)

    def empty_window(self, state: TrainState, batch: Batch, mask: ArrayLike | None) -> Metrics:
        """Returns an empty window for the metrics of such batches."""
        return self._empty(state, batch, mask)


class EvalProgram:
    """The compiled evaluation step with its window of metrics."""

    def __init__(self, recipe: Recipe) -> None:
        def step(
            state: TrainState, window: Metrics, batch: Batch, mask: ArrayLike | None
        ) -> tuple[Metrics, Array]:
            window = _merged(window, eval_step(recipe, state, batch, mask))
            # The window is donated to the next step; something must be left to wait for.
            return window, jnp.sum(
                jnp.stack([jnp.ravel(x)[0] for x in jax.tree.leaves(window)])
            )

        def first_window(state: TrainState, batch: Batch, mask: ArrayLike | None) -> Metrics:
            return _empty(eval_step(recipe, state, batch, mask))

        self.step = compiled(step, donate=(1,))
        self.finish = compiled(_finish, donate=(0,))
        self._empty = _EmptyWindow(first_window)

    def empty_window(self, state: TrainState, batch: Batch, mask: ArrayLike | None) -> Metrics:
        """Returns an empty window for the metrics of such batches."""
        return self._empty(state, batch, mask)


class _EmptyWindow:
    """Makes empty windows; the structure is found once, by abstract evaluation."""

    def __init__(self, first_window: Callable[..., Metrics]) -> None:
        self._first_window = first_window
        self._template: Metrics | None = None

    def __call__(self, *args: Any) -> Metrics:
        if self._template is None:
            shapes = jax.eval_shape(self._first_window, *args)
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            self._template = jax.device_get(_empty(zeros))
        return jax.tree.map(jnp.array, self._template)  # a copy, for it will be donated
