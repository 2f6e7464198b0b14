"""One call of `fit` in progress: what hooks see, and how it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from flaxtrain.checkpoint import CHECKPOINTS
from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import NonFiniteError, StateError
from flaxtrain.loop.feature_cache import NoCache
from flaxtrain.loop.hooks import Hook
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.length import begun_updates
from flaxtrain.loop.passes import Passes
from flaxtrain.loop.phases import describe_phase
from flaxtrain.loop.plan import parameter_table, spec_text
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.resume import checkpoint_meta
from flaxtrain.loop.several_processes import agree_on_the_end
from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.loop.stepping import Stepping
from flaxtrain.loop.steps_per_call import StepsPerCall
from flaxtrain.params import Table
from flaxtrain.train import Recipe, TrainState

__all__ = ["Run"]


class Run(Stepping):
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
        steps_per_call: StepsPerCall,
    ) -> None:
        super().__init__(
            recipe=recipe,
            state=state,
            stream=stream,
            total=total,
            workdir=workdir,
            hooks=hooks,
            program=program,
            passes=Passes(stream, cache, position, epochs),
            cache=cache,
            steps_per_call=steps_per_call,
        )
        self.horizon, self.texts, self.seed = horizon, texts, seed
        self.announcements = (*announcements, *begun_updates(total, recipe.spec.accumulation))
        self.error: BaseException | None = None
        self._first_batch, self._evaluate = self.batches, evaluate
        self._agreed = False

    # What hooks may do.

    @property
    def updates_at_end(self) -> int | None:
        """The number of updates at which the run ends, at least 1; None when not known."""
        return Horizon(self.total, batches_per_update=self.horizon.batches_per_update).updates

    @property
    def at_end(self) -> bool:
        """Whether the step just dispatched is known to be the last one."""
        stopped = self._reason is not None and self._watch.alone
        return stopped or self.batches == self.total

    @property
    def ends_everywhere(self) -> bool:
        """Whether all processes end the run after the same batch, and for the same reason."""
        return self._agreed or self.error is None or isinstance(self.error, NonFiniteError)

    def stop(self, reason: str) -> None:
        """Ends the run after the current step; `reason` goes into the result.

        Of several processes one is enough: all end after the same batch, a few steps later.
        """
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
        meta = checkpoint_meta(self.recipe, self.state, self.stream, self.seed)
        devices = self._program.engine.describe()
        return {**meta, **self._steps_per_call.as_meta(), "devices": devices}

    def flush(self) -> None:
        """Lets every hook write what is not on the disk yet."""
        for hook in self._hooks:
            hook.flush()

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
            KeyboardInterrupt: Ctrl-C, once the step in progress is done and the state is saved;
                in one process, or in another one.
        """
        began = time.monotonic()
        started: list[Hook] = []
        try:
            with self.throughput.pause():
                self.announcements += self._cache.fill(
                    self.recipe, self.state, interrupt, self._program.engine
                )
            self._program = self._program_of(self._cache.recipe(self.recipe))
            for hook in self._hooks:
                hook.on_start(self)
                started.append(hook)
            self._steps(interrupt)
            self._settle()
            self._end_with_others(interrupt)
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

    def _end_with_others(self, interrupt: DeferredInterrupt) -> None:
        """Ends the steps; by Ctrl-C in any process, with an error in all of them."""
        self._reason, error = agree_on_the_end(self.batches, self._reason, interrupt.requested)
        if error is not None:
            self._agreed = True
            raise error

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
        first = sum(self._compiled.values())  # these are part of `compile`
        steps = self.batches - self._first_batch - first
        count = self.recipe.spec.accumulation.count
        rate = {"steps_per_sec": steps / count / seconds["train"]} if steps > 0 else {}
        return {**seconds, **rate}
