"""One call of `fit` in progress: what hooks see, and the loop that drives the steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checkpoint import CHECKPOINTS
from flaxtrain.data import HostBatch, Stream, prefetch
from flaxtrain.durations import Horizon
from flaxtrain.errors import NonFiniteError, StateError
from flaxtrain.loop.bad_steps import bad_step_error
from flaxtrain.loop.feature_cache import NoCache
from flaxtrain.loop.hooks import Hook
from flaxtrain.loop.in_flight import Dispatched, InFlight
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.length import begun_updates
from flaxtrain.loop.padding import checked_mask
from flaxtrain.loop.passes import Passes
from flaxtrain.loop.phases import describe_phase
from flaxtrain.loop.plan import parameter_table, spec_text
from flaxtrain.loop.result import FitResult, History
from flaxtrain.loop.resume import checkpoint_meta
from flaxtrain.loop.window import IN_FLIGHT, Report, TrainProgram
from flaxtrain.monitor import Throughput
from flaxtrain.parallel import place
from flaxtrain.params import Table
from flaxtrain.train import Recipe, TrainState
from flaxtrain.typing import Array

__all__ = ["Run"]


class Run:
    """One call of `fit` in progress.

    Attributes:
        recipe: what does not change within the current phase of the run.
        state: the current training state. Reading its arrays waits for the device.
        stream: the training data.
        horizon: length of the run, of an epoch, of a batch.
        total: number of batches at which the run ends; None when only the epochs are known.
        batches: number of batches dispatched since the beginning of the run, resumed part
            included.
        first_step: number of updates that `state` had when this call of `fit` began.
        workdir: the run's directory, or None.
        history: the scalars so far.
        throughput: the clock of the run.
        announcements: what the trainer decided by itself, as sentences.
        texts: tables for TensorBoard, by name.
        seed: the trainer's seed.
        error: the exception that ends the run, or None.
        dispatched: whether this call has made a step.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        state: TrainState,
        stream: Stream,
        horizon: Horizon,
        total: int | None,
        epochs: int | None,
        hooks: tuple[Hook, ...],
        program: Callable[[Recipe], TrainProgram],
        evaluate: Callable[..., dict[str, float]],
        position: int,
        workdir: Path | None,
        announcements: tuple[str, ...],
        texts: Mapping[str, str],
        seed: int,
        cache: NoCache,
    ) -> None:
        self.recipe, self.state, self.stream = recipe, state, stream
        self.horizon, self.total, self.workdir = horizon, total, workdir
        self.first_step, self.batches = (
            int(value) for value in jax.device_get((state.step, state.counters.batches))
        )
        self._first_batch = self.batches
        self.history = History()
        self.throughput = Throughput()
        self.announcements = (*announcements, *begun_updates(total, recipe.spec.accumulation))
        self.texts, self.seed = texts, seed
        self.error: BaseException | None = None
        self.dispatched = False
        self._passes = Passes(stream, cache, position, epochs)
        self._hooks, self._program_of, self._evaluate = hooks, program, evaluate
        self._cache, self._program = cache, program(recipe)
        self._known_step, self._known_batches = self.first_step, self.batches
        self._reason: str | None = None
        self._pending: deque[tuple[int, Report]] = deque()
        self._in_flight = InFlight()
        self._status: Array | None = None
        self._window: Any = None
        self._skipped, self._closed_at = 0, jnp.asarray(self.first_step, jnp.int32)
        self._last = jnp.asarray(-1 if total is None else total, jnp.int32)
        self._seconds = {"compile": 0.0, "evaluate": 0.0}

    # What hooks may do.

    @property
    def updates_at_end(self) -> int | None:
        """The number of updates at which the run ends, at least 1; None when not known."""
        return Horizon(self.total, batches_per_update=self.horizon.batches_per_update).updates

    @property
    def at_end(self) -> bool:
        """Whether the step just dispatched is known to be the last one."""
        return self._reason is not None or self.batches == self.total

    def stop(self, reason: str) -> None:
        """Ends the run after the current step; `reason` goes into the result."""
        self._reason = self._reason or reason

    def evaluate(self, ds: Any, batch_size: int | None = None) -> dict[str, float]:
        """Evaluates the current state, records the result and tells the hooks."""
        self._settle()
        began = time.monotonic()
        with self.throughput.pause():
            metrics = self._evaluate(ds, batch_size=batch_size, state=self.state)
            step = int(jax.device_get(self.state.step))
            self.history.val.append({"step": step, **metrics})
            for hook in self._hooks:
                hook.on_eval(self, step, metrics)
        self._seconds["evaluate"] += time.monotonic() - began
        return metrics

    def require_workdir(self, wanted_by: str) -> Path:
        """Returns the workdir.

        Raises:
            StateError: the trainer has none.
        """
        if self.workdir is None:
            raise StateError(
                f"{wanted_by} needs a directory",
                where="Trainer",
                fix="pass workdir= to the Trainer",
            )
        return self.workdir

    @property
    def checkpoint_directory(self) -> Path:
        """Where checkpoints of this run go."""
        return self.require_workdir("SaveEvery()") / CHECKPOINTS

    def checkpoint_meta(self) -> dict[str, Any]:
        """What a checkpoint says beside the state, as JSON values."""
        return checkpoint_meta(self.recipe, self.state, self.stream, self.seed)

    def overview(self) -> Table:
        """Returns the table of parameters."""
        return parameter_table(self.recipe)

    def phase_text(self) -> str:
        """Returns a sentence about the phase of the run that has begun."""
        return describe_phase(self.recipe.assignment, self.recipe.phase)

    def spec_text(self) -> str:
        """Returns the resolved spec as text."""
        return spec_text(self.recipe.spec)

    # The loop.

    def drive(self, interrupt: DeferredInterrupt) -> FitResult:
        """Runs the steps and returns the result.

        Raises:
            NonFiniteError: loss or gradient became NaN or infinite and the spec says `"raise"`,
                or too many steps in a row were rejected.
            KeyboardInterrupt: Ctrl-C, once the step in progress is done and the state is saved.
        """
        began = time.monotonic()
        started: list[Hook] = []
        try:
            with self.throughput.pause():
                self.announcements += self._cache.fill(self.recipe, self.state, interrupt)
            self._program = self._program_of(self._cache.recipe(self.recipe))
            for hook in self._hooks:
                hook.on_start(self)
                started.append(hook)
            self._steps(interrupt)
            self._settle()
            if interrupt.requested:
                raise KeyboardInterrupt
            for hook in self._hooks:
                hook.on_last_step(self)
        except BaseException as error:
            self.error = error
            self._lift_latch(error)
            raise
        finally:
            self._finish(started)
        timings, history = self._timings(time.monotonic() - began), self.history
        return FitResult(self.state, history, timings, self._reason or "finished")

    def _lift_latch(self, error: BaseException) -> None:
        """Makes the state one to go on from, where a bad step has halted the run."""
        with suppress(Exception):  # the device may have failed: that is `error` already
            if (bad := self._in_flight.settle()) is not None:
                error.add_note(f"before that, batch {bad.number} of the run was a bad step")
            self.batches = int(jax.device_get(self.state.counters.batches))
            self.state = self.state.resumable()

    def _finish(self, started: list[Hook]) -> None:
        """Tells every hook that has started; one that fails does not keep it from others."""
        failures: list[Exception] = []
        for hook in started:
            try:
                if self.error is not None:
                    hook.on_exception(self, self.error)
                hook.on_end(self)
            except Exception as failure:
                failures.append(failure)
        if failures and self.error is None:
            raise failures[0]
        for failure in failures:
            assert self.error is not None
            self.error.add_note(f"and a hook failed at the end: {failure!r}")

    def _timings(self, total: float) -> dict[str, float]:
        spent = {**self._seconds, **self._cache.seconds, **self.throughput.totals()}
        seconds = {"total": total, **spent}
        steps = self.batches - self._first_batch - 1  # the first one is part of `compile`
        count = self.recipe.spec.accumulation.count
        rate = {"steps_per_sec": steps / count / seconds["train"]} if steps > 0 else {}
        return {**seconds, **rate}

    def _steps(self, interrupt: DeferredInterrupt) -> None:
        left = None if self.total is None else self.total - self.batches
        source = self._passes.batches(self.recipe, left)
        for batch in prefetch(source, place, on_wait=self.throughput.waited):
            if self.dispatched:
                self._step(batch)
            else:
                began = time.monotonic()
                with self.throughput.pause():
                    self._step(batch)
                    jax.block_until_ready(self._status)
                self._seconds["compile"] = time.monotonic() - began
                self.dispatched = True
            self.throughput.step(batch.count)
            for hook in self._hooks:
                hook.on_step(self)
            if self._reason or interrupt.requested:
                break
        self._close_window()

    def _step(self, batch: HostBatch) -> None:
        data, mask = self._cache.data(batch), checked_mask(self.recipe, self.stream, batch)
        if self._window is None:
            self._window = self._program.empty_window(self.state, data, mask)
        self.state, self._window, status = self._program.step(
            self.state, self._window, data, mask, self._last
        )
        self._status = status
        # Without its features: it is to be of use later, and runs again to the same bits.
        step = Dispatched(self.batches, *self._passes.place(), batch.data, mask, status)
        self.batches += 1
        if (halted := self._in_flight.add(step)) is not None:
            raise self._error(halted)
        if self.batches % self._program.log_every == 0:
            self._close_window()
        if self._may_be_next_phase():
            self._change_phase()
        self._deliver()

    def _may_be_next_phase(self) -> bool:
        """Whether enough batches were dispatched since the step was last read; no waiting."""
        stop = self.recipe.phase.stop
        count = self.recipe.spec.accumulation.count
        # Rounded up: an update may have been begun before the step was read.
        at_most = self._known_step - (self._known_batches - self.batches) // count
        return stop is not None and at_most >= stop

    def _change_phase(self) -> None:
        """Waits for the step in progress, and enters the next phase if it has begun.

        Rejected steps don't count, so the phase may have to wait for as many batches more.
        """
        step = int(jax.device_get(self.state.step))
        self._known_step, self._known_batches = step, self.batches
        recipe = self.recipe.at(step)
        if recipe is self.recipe:
            return
        self._close_window()
        self._settle()
        with self.throughput.pause():
            self.state = recipe.enter(self.state)
            self._cache.drop()
            self.recipe, self._program = recipe, self._program_of(recipe)
            self._window = None
        for hook in self._hooks:
            hook.on_phase(self, step)

    def _close_window(self) -> None:
        """Ends the window of metrics; its values are read when they are sure to be there."""
        if self._window is None or self._status is None:
            return
        values, weighted, self._window, self._closed_at = self._program.finish(
            self._window, self._status, self._closed_at
        )
        self._pending.append((self.batches, Report(values, weighted, self._status)))

    def _deliver(self, wait: bool = False) -> None:
        """Hands over the reports whose steps are surely finished, or all if told to wait."""
        while self._pending and (wait or self._pending[0][0] <= self.batches - IN_FLIGHT):
            _, report = self._pending.popleft()
            status, metrics = report.collect()
            if metrics or status.skipped > self._skipped:
                row = {**metrics, **status.rejected(), **self._rates()}
                self._skipped = status.skipped
                self.history.train.append({"step": status.step, **row})
                for hook in self._hooks:
                    hook.on_log(self, status.step, row)

    def _rates(self) -> dict[str, float]:
        """Returns the speed since the last log point; a step is an optimizer update."""
        rates = self.throughput.window()
        if "steps_per_sec" in rates:
            rates["steps_per_sec"] /= self.recipe.spec.accumulation.count
        return rates

    def _settle(self) -> None:
        """Waits for all steps and hands over all reports."""
        if (halted := self._in_flight.settle()) is not None:
            raise self._error(halted)
        self._deliver(wait=True)

    def _error(self, step: Dispatched) -> NonFiniteError:
        """Looks at a step that has halted the run: those after it were all rejected."""
        note = None
        try:
            self._close_window()
            self._deliver(wait=True)
        except Exception as failure:  # of a hook: the report must not be lost for it
            note = f"and at the log point before it: {failure!r}"
        with self.throughput.pause():
            error = bad_step_error(self.recipe, self.state, self.stream, step, self.workdir)
        if note is not None:
            error.add_note(note)
        return error
