"""Hooks: what the host does around the steps. Every feature of the loop beside the step is one.

A hook never waits for the device in `on_step`. Order at one step: log, evaluate, decide, save.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flaxtrain import checkpoint
from flaxtrain.answering import answering
from flaxtrain.checks import as_directory, check_instance, check_integer
from flaxtrain.durations import parse, to_batches
from flaxtrain.errors import ArgumentError, DataError
from flaxtrain.loop.length import used_up_by_one_pass
from flaxtrain.monitor import ConsoleWriter, MetricWriter, MultiWriter, TensorBoardWriter
from flaxtrain.parallel import is_writer, peer_watch
from flaxtrain.parallel.global_arrays import gathered, is_held_here
from flaxtrain.parallel.processes import until_process_0_is_done

if TYPE_CHECKING:
    from flaxtrain.loop.run import Run

__all__ = ["Console", "Evaluate", "Hook", "SaveEvery", "TensorBoard"]

Duration = int | str


class Hook:
    """Base of all hooks: host events in the order in which they happen; override any.

    Example:
        >>> class StopAt(Hook):
        ...     def on_log(self, run, step, metrics):
        ...         if metrics["loss"] < 0.1:
        ...             run.stop("the loss is low enough")
    """

    def on_start(self, run: Run) -> None:
        """The run is about to begin; `run.state` is there."""

    def on_note(self, run: Run, note: str) -> None:
        """The run has decided something by itself after its start; `note` says what."""

    def period(self, run: Run) -> int | None:
        """Returns at multiples of which number of batches `on_step` has to be called.

        With `steps_per_call=` above 1 it is called once for each call of several steps. A call
        never goes past such a multiple. None: it does not matter. Asked once, after `on_start`.

        Example:
            >>> class Peek(Hook):
            ...     def period(self, run):
            ...         return 100
            ...
            ...     def on_step(self, run):
            ...         if run.batches % 100 == 0:
            ...             print(run.batches, int(run.state.step))
        """
        return None

    def on_step(self, run: Run) -> None:
        """A call was dispatched, of one step or several; reading the state here stalls.

        `run.batches` counts its batches.
        """

    def on_log(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a window have arrived; `step` is the update they end with."""

    def on_phase(self, run: Run, step: int) -> None:
        """Other parameters are trained from here on, see `run.recipe.phase`."""

    def on_eval(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """An evaluation is done."""

    def on_last_step(self, run: Run) -> None:
        """All steps are done and no error has come up; other hooks still listen."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """The run ends with an error; `run.state` is the last good state."""

    def on_end(self, run: Run) -> None:
        """The run is over, with or without an error."""

    def flush(self) -> None:
        """Writes what is not on the disk yet: another process ends this one at once.

        Called from another thread than the rest.
        """

    def elsewhere(self, directory: Path) -> Self:
        """Returns the hook that a rehearsal calls in place of this one: a shallow copy.

        What the two share, such as a list that both append to, keeps what the rehearsal does to
        it. Override this in a hook that writes to a place of its own.

        Args:
            directory: for this hook alone; not there yet, and gone after the rehearsal.

        Example:
            >>> class Notes(Hook):
            ...     def __init__(self, path):
            ...         self.path = path
            ...
            ...     def elsewhere(self, directory):
            ...         directory.mkdir()
            ...         return Notes(directory / "notes.txt")
        """
        return copy.copy(self)


class Evaluate(Hook):
    """Evaluates every so often, and at the end.

    Args:
        ds: the data set to evaluate on.
        every: a duration: batches, or `"1ep"`, `"10%"`; None for the end only.
        batch_size: for a data set given as arrays.
    """

    @answering
    def __init__(
        self, ds: Any, every: Duration | None = "1ep", batch_size: int | None = None
    ) -> None:
        if every is not None:
            check_period(every, where="Evaluate(every=...)")
        if batch_size is not None:
            check_integer("batch_size", batch_size, minimum=1, where="Evaluate")
        self._ds, self._every, self._batch_size = ds, every, batch_size
        self._period: int | None = None
        self._last = -1

    def elsewhere(self, directory: Path) -> Self:
        """Returns a copy, where the data set is not used up by it."""
        if used_up_by_one_pass(self._ds):
            raise DataError(
                "the data set can be iterated once only: the rehearsal would use it up",
                where="Evaluate(ds)",
                fix="pass arrays, a list of batches, or a function that returns a new iterator",
            )
        return copy.copy(self)

    def on_start(self, run: Run) -> None:
        """Resolves the period against the length of the run."""
        if self._every is not None:
            self._period = to_batches(self._every, run.horizon, where="eval_every")
        once = self._period in (None, run.total)
        if not once and used_up_by_one_pass(self._ds):
            raise DataError(
                "the evaluation data set can be iterated once only, for several evaluations",
                where="eval_ds",
                fix="pass arrays, a list of batches, or a function that returns a new iterator",
            )

    def period(self, run: Run) -> int | None:
        """Returns the period in batches; None at the end only."""
        return self._period

    def on_step(self, run: Run) -> None:
        """Evaluates when it is time."""
        due = self._period is not None and run.batches % self._period == 0
        if due or run.at_end:
            run.evaluate(self._ds, batch_size=self._batch_size)
            self._last = run.batches

    def on_last_step(self, run: Run) -> None:
        """Evaluates once more if the run ended between two evaluations."""
        if self._last != run.batches and run.dispatched:
            run.evaluate(self._ds, batch_size=self._batch_size)


class SaveEvery(Hook):
    """Saves the state every so often, and when the run ends, even if it ends with an error.

    Args:
        every: a duration, as for `Evaluate`; None for the end only.
        directory: where; default `checkpoints` in the run's workdir.
    """

    @answering
    def __init__(
        self, every: Duration | None = None, directory: str | Path | None = None
    ) -> None:
        if every is not None:
            check_period(every, where="SaveEvery(every=...)")
        self._every = every
        self._directory = as_directory("directory", directory, where="SaveEvery")
        self._target: Path | None = None
        self._period: int | None = None

    def elsewhere(self, directory: Path) -> Self:
        """Returns a copy that saves there, where this one has a directory of its own."""
        moved = copy.copy(self)
        moved._directory = None if self._directory is None else directory
        return moved

    def on_start(self, run: Run) -> None:
        """Resolves the period against the length of the run."""
        self._target = Path(self._directory or run.checkpoint_directory)
        if self._every is not None:
            self._period = to_batches(self._every, run.horizon, where="SaveEvery(every=...)")

    def period(self, run: Run) -> int | None:
        """Returns the period in batches; None at the end only."""
        return self._period

    def on_step(self, run: Run) -> None:
        """Saves when it is time."""
        if self._period is not None and run.batches % self._period == 0:
            self._save(run)

    def on_end(self, run: Run) -> None:
        """Saves the last state."""
        if run.ends_everywhere:
            # None of them reports why before the state is on the disk.
            with until_process_0_is_done("the last state"):
                self._save(run)
        # To put it together takes all processes, and the others may know of no error.
        elif is_held_here(run.state):
            peer_watch().failing(run.error)
            self._save(run)

    def _save(self, run: Run) -> None:
        assert self._target is not None
        meta, state = run.checkpoint_meta(), run.state
        if not is_held_here(state):
            state = gathered(state)
        if not is_writer():
            return
        path = checkpoint.step_path(self._target, meta["step"])
        # Batches that were rejected since, or edited hyperparameters, are another state.
        if not path.exists() or checkpoint.read_meta(path) != meta:
            with run.throughput.pause():
                checkpoint.save(path, state, meta=meta, overwrite=True)


class Console(Hook):
    """Prints one line per log point and per evaluation, and what the run is about to do."""

    def __init__(self, writer: ConsoleWriter | None = None) -> None:
        if writer is not None:
            fix = "pass a ConsoleWriter, or leave it out"
            check_instance("writer", writer, ConsoleWriter, where="Console", fix=fix)
        self._writer = writer

    def on_start(self, run: Run) -> None:
        """Prints the announcements: an inferred loss, defaults that were taken."""
        self._writer = self._writer or ConsoleWriter(total_steps=run.updates_at_end)
        for line in run.announcements:
            self._writer.write_line(line)

    def on_note(self, run: Run, note: str) -> None:
        """Prints it."""
        assert self._writer is not None
        self._writer.write_line(note)

    def on_phase(self, run: Run, step: int) -> None:
        """Announces that the step is compiled anew, and why."""
        assert self._writer is not None
        self._writer.write_line(run.phase_text())

    def on_log(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Prints the window's metrics."""
        assert self._writer is not None
        self._writer.write_scalars(step, metrics, run="train")

    def on_eval(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Prints the metrics of the evaluation."""
        assert self._writer is not None
        self._writer.write_scalars(step, metrics, run="val")


class TensorBoard(Hook):
    """Writes the runs `train` and `val` with the same tags, so that their curves overlay.

    Args:
        directory: where; default the run's workdir.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self._directory = as_directory("directory", directory, where="TensorBoard")
        self._writers: dict[str, MetricWriter] = {}
        self._written: dict[str, tuple[int, frozenset[str]]] = {}
        self._first = 0

    def elsewhere(self, directory: Path) -> Self:
        """Returns a copy that writes there, where this one has a directory of its own."""
        moved = copy.copy(self)
        moved._directory = None if self._directory is None else directory
        moved._writers = {}
        return moved

    def on_start(self, run: Run) -> None:
        """Opens the writers; points at or after the step that is resumed from are dropped."""
        directory = Path(self._directory or run.require_workdir("TensorBoard()"))
        purge = run.first_step + 1 if run.first_step else None
        self._written, self._first = {}, purge or 0
        for name in ("train", "val"):
            # A full disk stops the curves, not the training: MultiWriter warns once and counts.
            writer = TensorBoardWriter(directory / name, purge_step=purge)
            self._writers[name] = MultiWriter([writer])
        texts = {
            "parameters": run.overview().markdown(),
            "spec": f"```json\n{run.spec_text()}\n```",
            **run.texts,
        }
        self._writers["train"].write_texts(run.first_step, texts)

    def on_phase(self, run: Run, step: int) -> None:
        """Writes a note about the phase."""
        self._writers["train"].write_texts(step, {"phase": run.phase_text()})

    def on_log(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Writes the window's metrics."""
        self._write("train", step, metrics)

    def on_eval(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of the evaluation."""
        self._write("val", step, metrics)
        self._writers["val"].flush()

    def on_end(self, run: Run) -> None:
        """Closes the writers."""
        for writer in self._writers.values():
            writer.close()

    def flush(self) -> None:
        """Writes the points that are in memory."""
        for writer in self._writers.values():
            writer.flush()

    def _write(self, name: str, step: int, metrics: dict[str, float]) -> None:
        """Writes what has no point at this step yet: a rejected batch does not move it."""
        last, tags = self._written.get(name, (step, frozenset()))
        tags = tags if step == last else frozenset()
        new = {tag: value for tag, value in metrics.items() if tag not in tags}
        self._written[name] = step, tags | new.keys()
        if new and step >= self._first:
            self._writers[name].write_scalars(step, new)


def check_period(every: Duration, *, where: str) -> None:
    """Refuses a period that is no duration, or zero."""
    if parse(every, where=where).amount == 0:
        raise ArgumentError(
            f"a period of {every!r} is no period", where=where, fix="pass at least one step"
        )
