"""The part of a run that makes the steps: from batches to calls of the compiled step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_integer
from flaxtrain.data import HostBatch, Stream, prefetch
from flaxtrain.data.local_rows import batch_as_given
from flaxtrain.errors import NonFiniteError
from flaxtrain.loop.bad_steps import bad_step_error, for_diagnosis
from flaxtrain.loop.blocks import Block, Blocks, Call, OneStep, SeveralSteps
from flaxtrain.loop.feature_cache import NoCache
from flaxtrain.loop.hooks import Hook
from flaxtrain.loop.in_flight import Dispatched, InFlight
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.log_points import LogPoints
from flaxtrain.loop.padding import checked_mask, has_masks
from flaxtrain.loop.passes import Passes
from flaxtrain.loop.result import History
from flaxtrain.loop.several_processes import wait_for_all
from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.loop.steps_per_call import ONE_STEP, StepsPerCall, StepTimes, best_call_form
from flaxtrain.monitor import Throughput
from flaxtrain.parallel import peer_watch
from flaxtrain.parallel.processes import of_process_0
from flaxtrain.train import Recipe, TrainState
from flaxtrain.tree import nbytes
from flaxtrain.typing import Array

__all__ = ["Stepping"]


class Stepping:
    """The part of a run that makes the steps; the rest, and what hooks see, is `Run`.

    Args:
        recipe: that of the phase in which the run begins.
        state: the state before the first step.
        stream: the training data.
        total: number of batches at which the run ends; None when only the epochs are known.
        workdir: the run's directory, or None.
        hooks: all hooks.
        program: from a recipe to the compiled step.
        passes: the batches.
        cache: the frozen features.
        steps_per_call: how many steps a call makes.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        state: TrainState,
        stream: Stream,
        total: int | None,
        workdir: Path | None,
        hooks: tuple[Hook, ...],
        program: Callable[[Recipe], TrainProgram],
        passes: Passes,
        cache: NoCache,
        steps_per_call: StepsPerCall,
    ) -> None:
        self.recipe, self.state, self.stream = recipe, state, stream
        self.total, self.workdir = total, workdir
        self.first_step, self.batches = (
            int(value) for value in jax.device_get((state.step, state.counters.batches))
        )
        self.history, self.throughput = History(), Throughput()
        self.announcements: tuple[str, ...] = ()
        self.dispatched = False
        self._hooks, self._program_of, self._passes = hooks, program, passes
        self._cache, self._program = cache, program(recipe)
        self._known_step, self._known_batches = self.first_step, self.batches
        self._reason: str | None = None
        self._in_flight = InFlight()
        self._log_points = LogPoints(self.first_step, self._program.engine)
        self._status: Array | None = None
        self._last = jnp.asarray(-1 if total is None else total, jnp.int32)
        self._steps_per_call = steps_per_call
        self._batches_per_update = recipe.spec.accumulation.count
        self._times, self._watch = StepTimes(), peer_watch()
        self._watch.progress(self.batches)
        # Kinds of calls that were made before, and the batches of the first one of each.
        self._compiled: dict[type[Call], int] = {}
        self._seconds = {"compile": 0.0, "evaluate": 0.0}

    @property
    def _whole(self) -> Any:
        """The run that this is a part of, as hooks see it."""
        return self

    def _steps(self, interrupt: DeferredInterrupt) -> None:
        left = None if self.total is None else self.total - self.batches
        for call in self._calls(left):
            self._timed(call)
            self.throughput.step(call.examples, call.steps)
            for hook in self._hooks:
                hook.on_step(self._whole)
            if self._watch.ends(self.batches, bool(self._reason) or interrupt.requested):
                break
        self._close_window()

    # Which calls there are.

    def _calls(self, left: int | None) -> Iterator[Call]:
        """Yields the calls one by one: what can be in the next one may depend on the last.

        Args:
            left: number of batches; None for all that there are.
        """
        batches = self._passes.batches(self.recipe, left)
        settled = self._steps_per_call.settled(self.recipe)
        self._blocks = Blocks(
            settled or ONE_STEP,
            [period for _, period in self._cadences()],
            self.batches,
            has_masks(self.recipe, self.stream),
            lambda batch: checked_mask(self.recipe, self.stream, batch),
        )
        units = batches if settled == ONE_STEP else self._blocks.of(batches)
        for unit in prefetch(units, self._place, on_wait=self.throughput.waited):
            if isinstance(unit, HostBatch):
                mask = checked_mask(self.recipe, self.stream, unit)
                yield OneStep(unit, self._cache.data(unit), mask)
                continue
            first, count = 0, len(unit.counts)
            while first < count:
                stop = min(count, first + self._batches_in_phase())
                yield SeveralSteps(unit, self._cache.data(unit.batch), first, stop)
                first = stop

    def _place(self, unit: HostBatch | Block) -> HostBatch | Block:
        if isinstance(unit, HostBatch):
            return self._program.step.place(unit)
        return replace(unit, batch=self._program.block(unit.call_form).place(unit.batch))

    def _cadences(self) -> list[tuple[str, int]]:
        """Returns the numbers of batches at which calls end, and what asks for each.

        Raises:
            ArgumentTypeError: a hook's period is no integer.
            ArgumentError: it is less than 1.
        """
        cadences = [("log_every", self._program.log_every)]
        for hook in self._hooks:
            name, period = type(hook).__name__, hook.period(self._whole)
            if period is not None:
                check_integer("period", period, minimum=1, where=f"{name}.period")
                cadences.append((name, period))
        return cadences

    def _batches_in_phase(self) -> int:
        """Returns how many batches can be taken before the next phase may have begun."""
        stop = self.recipe.phase.stop
        if stop is None:
            return sys.maxsize
        updates = stop - self._known_step - 1
        earliest = self._known_batches + updates * self._batches_per_update + 1
        return max(1, earliest - self.batches)

    # One call.

    def _timed(self, call: Call) -> None:
        """Makes a call; waits for the first one of its kind, and for those that are timed."""
        if type(call) not in self._compiled:
            self._compiled[type(call)] = call.steps
            began = time.monotonic()
            with self.throughput.pause():
                self._make(call)
                jax.block_until_ready(self._status)
            self._seconds["compile"] += time.monotonic() - began
        elif self._steps_per_call.call_form is None:
            began = time.perf_counter()
            self._make(call)
            jax.block_until_ready(self._status)
            if self._times.add(time.perf_counter() - began):
                self._choose(call)
        else:
            self._make(call)

    def _choose(self, call: Call) -> None:
        """Settles how many steps a call makes from here on, and says so."""
        size = nbytes(call.shapes)
        seconds = of_process_0(self._times.seconds)
        call_form, said = best_call_form(seconds, size, self._cadences(), self.recipe)
        self._steps_per_call.call_form = self._blocks.call_form = call_form
        self.announcements += (said,)
        for hook in self._hooks:
            hook.on_note(self._whole, said)

    def _make(self, call: Call) -> None:
        points = self._log_points
        if points.window is None:
            points.window = self._program.empty_window(self.state, *call.shapes)
        self._watch.progress(self.batches + call.steps)  # the dispatch may wait for the others
        self.state, points.window, self._status, statuses = call.make(
            self._program, self.state, points.window, self._last
        )
        self.dispatched = True  # from here on, the state before is gone: it was donated
        places = [self._passes.place() for _ in range(call.steps)]
        dispatched = call.record(self.batches, places, statuses)
        self.batches += call.steps
        if (halted := self._in_flight.dispatched(dispatched, call.steps)) is not None:
            raise self._error(halted)
        if self.batches % self._program.log_every == 0:
            self._close_window()
        if self._may_be_next_phase():
            self._change_phase()
        self._deliver()

    # Phases.

    def _may_be_next_phase(self) -> bool:
        """Whether enough batches were dispatched since the step was last read; no waiting."""
        stop = self.recipe.phase.stop
        if stop is None:
            return False
        # Rounded up: an update may have been begun before the step was read.
        begun = -((self._known_batches - self.batches) // self._batches_per_update)
        return self._known_step + begun >= stop

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
            self.state = self._program.engine.place_state(recipe.enter(self.state))
            self._cache.drop()
            self.recipe, self._program = recipe, self._program_of(recipe)
            self._log_points.window = None
        for hook in self._hooks:
            hook.on_phase(self._whole, step)

    # Log points, and the end of a step that is bad.

    def _close_window(self) -> None:
        self._log_points.close(self._program, self.batches, self._status)

    def _deliver(self, wait: bool = False) -> None:
        """Hands over the reports whose steps are surely finished, or all if told to wait."""
        done = None if wait else self.batches - self._in_flight.steps
        for step, metrics in self._log_points.finished(done):
            row = {**metrics, **self._rates()}
            self.history.train.append({"step": step, **row})
            for hook in self._hooks:
                hook.on_log(self._whole, step, row)

    def _rates(self) -> dict[str, float]:
        """Returns the speed since the last log point; a step is an optimizer update."""
        rates = self.throughput.window()
        if "steps_per_sec" in rates:
            rates["steps_per_sec"] /= self._batches_per_update
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
            engine, count = self._program.engine, self.recipe.spec.accumulation.microbatches
            whole = engine.as_rows((step.data, step.mask), microbatches=count)
            data, mask = batch_as_given(self.stream, *whole)
            step = step._replace(data=data, mask=mask)
            state = engine.readable(for_diagnosis(self.state))
            error = bad_step_error(self.recipe, state, self.stream, step, self.workdir)
            wait_for_all()  # the first one to raise it would end those that still look
        self._watch.failing()
        if note is not None:
            error.add_note(note)
        return error
