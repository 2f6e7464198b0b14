"""The compiled steps of training and of evaluation, each with its window of metrics."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.loop.several_steps import StepParts, several_steps
from flaxtrain.loop.steps_per_call import CallForm
from flaxtrain.loop.window import Metrics, Packed, Window
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.train import (
    AxisReplicas,
    OneProgram,
    Recipe,
    TrainState,
    eval_step,
    train_step,
)
from flaxtrain.typing import Array, ArrayLike, Batch

__all__ = ["EvalProgram", "TrainProgram", "on_engine", "seeing_all"]


def _status(state: TrainState) -> Array:
    counters = state.counters
    return jnp.stack(
        [state.step, counters.batches, counters.skipped, counters.spikes, counters.halted]
    )


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
            return train_step(recipe, state, *engine.seen_by_one((batch, mask)))[1]

        form, on_all = Window(metrics_of), on_engine(recipe, engine)
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
            step, donate=(0, 1), rows=(2, 3), microbatches=self._microbatches
        )
        self._parts = StepParts(make, is_due, _status)
        self._blocks: dict[CallForm, Compiled] = {}
        self.finish = engine.compiled(finish, donate=(0,))
        self.empty_window = lambda *args: engine.place_state(form.empty(*args))

    @property
    def compilations(self) -> int:
        """How often the step was compiled, by itself and in calls of several steps."""
        blocks = sum(block.compilations for block in self._blocks.values())
        return self.step.compilations + blocks

    def block(self, call_form: CallForm) -> Compiled:
        """Returns the function that makes several steps in one call, see `several_steps`."""
        if call_form not in self._blocks:
            self._blocks[call_form] = self.engine.compiled_step(
                several_steps(self._parts, call_form),
                donate=(0, 1),
                rows=(2, 3),
                microbatches=self._microbatches,
                stacked=True,
            )
        return self._blocks[call_form]


def on_engine(recipe: Recipe, engine: Engine) -> Recipe:
    """Returns a recipe whose training step knows of the other devices."""
    if engine.axis_name is not None:
        return recipe.changed(replicas=AxisReplicas(engine.axis_name))
    return seeing_all(recipe, engine)


def seeing_all(recipe: Recipe, engine: Engine) -> Recipe:
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
        recipe = seeing_all(recipe, engine)
        form = Window(lambda *args: eval_step(recipe, *args))

        def step(
            state: TrainState, window: Packed, batch: Batch, mask: ArrayLike | None
        ) -> tuple[Packed, Array]:
            window = form.merged(window, eval_step(recipe, state, batch, mask))
            return window, jnp.sum(window[0])

        self.step = engine.compiled(step, donate=(1,))
        self.finish = engine.compiled(form.finish, donate=(0,))
        self.empty_window = lambda *args: engine.place_state(form.empty(*args))
