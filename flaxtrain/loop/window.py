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
from flaxtrain.loop.several_steps import StepParts, several_steps
from flaxtrain.loop.steps_per_call import Calls
from flaxtrain.metrics import Mean, Terms
from flaxtrain.metrics.monoid import compute, empty_like, merge
from flaxtrain.parallel import ONE_DEVICE, Compiled, Engine
from flaxtrain.train import (
    STEP_METRICS,
    AxisReplicas,
    OneProgram,
    Recipe,
    TrainState,
    eval_step,
    train_step,
)
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = [
    "EvalProgram",
    "Report",
    "Status",
    "TrainProgram",
    "as_numbers",
    "on_engine",
    "seeing_all",
]

Metrics = dict[str, Any]


class Status(NamedTuple):
    """Where the device was after a step, as host integers."""

    step: int
    batches: int
    skipped: int
    spikes: int
    halted: int

    def rejected(self) -> dict[str, float]:
        """Returns the numbers of rejected steps that are not 0, by name."""
        counts = {"skipped": float(self.skipped), "spikes": float(self.spikes)}
        return {name: count for name, count in counts.items() if count}


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
    order = sorted(
        values, key=lambda name: (name != "loss", name.partition("/")[0] in STEP_METRICS)
    )
    return {name: float(np.asarray(values[name]).reshape(())) for name in order}


def _empty(metrics: Metrics) -> Metrics:
    return {name: empty_like(metric) for name, metric in metrics.items()}


def _has_weight(metric: Any, otherwise: Array) -> Array:
    """Whether a metric saw an example; of metrics that don't tell, `otherwise` is taken."""
    terms = metric.terms if isinstance(metric, Terms) else (metric,)
    known = [jnp.asarray(term.weight) != 0 for term in terms if isinstance(term, Mean)]
    return jnp.any(jnp.stack(known)) if known else otherwise


def _status(state: TrainState) -> Array:
    counters = state.counters
    return jnp.stack(
        [state.step, counters.batches, counters.skipped, counters.spikes, counters.halted]
    )


Packed = tuple[Array, tuple[Any, ...]]


class Window:
    """The form of a window of metrics: found once, and few arrays on its way through a step.

    Every array that a compiled function takes or returns costs a microsecond or two of
    dispatch, and metrics are mostly float32 scalars: these travel as one vector.

    Args:
        metrics_of: from the arguments of a step to its metrics; only evaluated abstractly.
    """

    def __init__(self, metrics_of: Callable[..., Metrics]) -> None:
        self._metrics_of = metrics_of
        self._template: Metrics | None = None
        self._tree: Any = None
        self._scalar: tuple[bool, ...] = ()
        self._adds = False  # whether merging these metrics is adding their arrays

    def empty(self, *args: Any) -> Packed:
        """Returns an empty window for steps with such arguments."""
        template = self._template
        if template is None:
            shapes = jax.eval_shape(self._metrics_of, *args)
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            template = self._template = jax.device_get(_empty(zeros))
            leaves, self._tree = jax.tree.flatten(template)
            self._adds = all(isinstance(metric, (Mean, Terms)) for metric in template.values())
            self._scalar = tuple(
                np.ndim(leaf) == 0 and leaf.dtype == np.float32 for leaf in leaves
            )
        return jax.tree.map(jnp.array, self.pack(template))  # a copy: it is donated

    def pack(self, window: Metrics) -> Packed:
        """Returns a window as a vector of its float32 scalars, and its other arrays."""
        leaves = jax.tree.leaves(window)
        scalars = [leaf for leaf, scalar in zip(leaves, self._scalar, strict=True) if scalar]
        others = [leaf for leaf, scalar in zip(leaves, self._scalar, strict=True) if not scalar]
        vector = jnp.stack(scalars) if scalars else jnp.zeros(0, jnp.float32)
        return vector, tuple(others)

    def unpack(self, packed: Packed) -> Metrics:
        """Returns the window that was packed."""
        scalars, others = iter(packed[0]), iter(packed[1])
        return self._tree.unflatten(
            [next(scalars) if scalar else next(others) for scalar in self._scalar]
        )

    def merged(self, packed: Packed, metrics: Metrics) -> Packed:
        """Returns the window with the metrics of one more step."""
        if self._adds:  # which in one vector is one operation
            return jax.tree.map(jnp.add, packed, self.pack(metrics))
        window = self.unpack(packed)
        return self.pack({name: merge(window[name], metrics[name]) for name in metrics})

    def finish(self, packed: Packed) -> tuple[Metrics, dict[str, Array], Packed]:
        """Returns the values of a window, which have weight, and the empty one that follows."""
        window = self.unpack(packed)
        values = {name: compute(metric) for name, metric in window.items()}
        some = _has_weight(window["loss"], jnp.array(True))
        weighted = {name: _has_weight(metric, some) for name, metric in window.items()}
        return values, weighted, self.pack(_empty(window))


class TrainProgram:
    """The compiled training step with its window of metrics.

    `step(state, window, batch, mask, last)` returns state, window and status.
    `finish(window, status, before)` returns the values of a window, which of them have weight,
    the window that follows, and the number of updates now. `before` is that number at the last
    log point. Where it is the same, nothing has weight and the window goes on: no two windows
    end at one update. The costly metrics are formed in the last update before each log point,
    in the last one of a phase, and in the last one up to batch number `last`.

    Args:
        recipe: what does not change in the run.
        log_every: number of batches between two log points.
        engine: where it runs.
    """

    def __init__(self, recipe: Recipe, log_every: int, engine: Engine = ONE_DEVICE) -> None:
        self.log_every, self.engine = log_every, engine

        def metrics_of(state: TrainState, batch: Batch, mask: ArrayLike | None) -> Metrics:
            return train_step(recipe, state, *engine.part((batch, mask)))[1]

        form, on_all = Window(metrics_of), on_engine(engine, recipe)
        count, stop = recipe.spec.accumulation.count, recipe.phase.stop

        def is_due(state: TrainState, last: Array) -> Array:
            number = state.counters.batches + 1
            # The last update of a window: fewer than `count` batches are left in it, and no
            # other fits. By `rem`, since `%` takes care of signs.
            due = jax.lax.rem(number + (count - 1), jnp.int32(log_every)) < count
            due |= (last >= 0) & (last - number < count)
            if stop is not None:
                due |= state.step + 1 == stop
            return due

        def make(
            state: TrainState,
            window: Packed,
            batch: Batch,
            mask: ArrayLike | None,
            norms: bool | Array,
        ) -> tuple[TrainState, Packed]:
            state, metrics = train_step(on_all, state, batch, mask, norms=norms)
            return state, form.merged(window, metrics)

        def step(
            state: TrainState, window: Packed, batch: Batch, mask: ArrayLike | None, last: Array
        ) -> tuple[TrainState, Packed, Array]:
            state, window = make(state, window, batch, mask, is_due(state, last))
            return state, window, _status(state)

        def finish(
            window: Packed, status: Array, before: Array
        ) -> tuple[Metrics, dict[str, Array], Packed, Array]:
            values, weighted, empty = form.finish(window)
            goes_on = status[0] == before
            after = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), window, empty)
            weighted = {name: some & ~goes_on for name, some in weighted.items()}
            return values, weighted, after, status[0]

        self._microbatches = recipe.spec.accumulation.microbatches
        self.step = engine.compiled_step(
            step, donate=(0, 1), rows=(2, 3), parts=self._microbatches
        )
        self._parts = StepParts(make, is_due, _status)
        self._blocks: dict[Calls, Compiled] = {}
        self.finish = engine.compiled(finish, donate=(0,))
        self.empty_window = lambda *args: engine.put(form.empty(*args))

    @property
    def compilations(self) -> int:
        """How often the step was compiled, by itself and in calls of several steps."""
        blocks = sum(block.compilations for block in self._blocks.values())
        return self.step.compilations + blocks

    def block(self, calls: Calls) -> Compiled:
        """Returns the function that makes several steps in one call, see `several_steps`."""
        if calls not in self._blocks:
            self._blocks[calls] = self.engine.compiled_step(
                several_steps(self._parts, calls),
                donate=(0, 1),
                rows=(2, 3),
                parts=self._microbatches,
                stacked=True,
            )
        return self._blocks[calls]


def on_engine(engine: Engine, recipe: Recipe) -> Recipe:
    """Returns a recipe whose training step knows of the other devices."""
    if engine is ONE_DEVICE:
        return recipe
    if engine.axis_name is not None:
        return recipe.changed(replicas=AxisReplicas(engine.axis_name))
    return seeing_all(engine, recipe)


def seeing_all(engine: Engine, recipe: Recipe) -> Recipe:
    """Returns a recipe for programs that see whole batches, on however many devices."""
    if engine is ONE_DEVICE:
        return recipe
    return recipe.changed(replicas=OneProgram(engine.spread, engine.keep_rows))


class EvalProgram:
    """The compiled evaluation step with its window of metrics.

    `step(state, window, batch, mask)` returns the window, and something to wait for: the window
    itself is donated to the next step.

    Args:
        recipe: what does not change in the run.
        engine: where it runs.
    """

    def __init__(self, recipe: Recipe, engine: Engine = ONE_DEVICE) -> None:
        self.engine = engine
        recipe = seeing_all(engine, recipe)
        form = Window(lambda *args: eval_step(recipe, *args))

        def step(
            state: TrainState, window: Packed, batch: Batch, mask: ArrayLike | None
        ) -> tuple[Packed, Array]:
            window = form.merged(window, eval_step(recipe, state, batch, mask))
            return window, jnp.sum(window[0])

        self.step = engine.compiled(step, donate=(1,))
        self.finish = engine.compiled(form.finish, donate=(0,))
        self.empty_window = lambda *args: engine.put(form.empty(*args))
