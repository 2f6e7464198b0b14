"""Runs in which every operation of a step is checked, one step at a time.

`jax.experimental.checkify` adds to a program what it takes to notice the first NaN, division by
zero and index out of range, and `checkify.check` in a model, with the line of source.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
from jax.experimental import checkify

from flaxtrain.data import HostBatch
from flaxtrain.errors import DebugError
from flaxtrain.loop.arguments import FitCall
from flaxtrain.loop.debug.twin import say, twin_of
from flaxtrain.loop.programs import Programs
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.train import Recipe, Rows, TrainState, forward
from flaxtrain.typing import Array, Batch

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["checkified"]

_LIBRARIES = tuple(
    str(folder)
    for folder in (
        Path(jax.__file__).parent,
        Path(flax.__file__).parent,
        Path(__file__).parents[1],
    )
)
"""The folders of the libraries whose lines are not what somebody looks for."""

_FLOATS = checkify.float_checks | checkify.user_checks
_ALL = _FLOATS | checkify.index_checks


class CheckedProgram(TrainProgram):
    """A training step that raises the first error of each batch, and waits for it.

    The forward pass is checked by itself first: its errors have the plainest source lines, and
    checkify can't check the indices of a backward pass (it fails on those that
    `take_along_axis` makes).

    Args:
        recipe: what does not change in the run.
        log_every: number of batches between two log points.
    """

    def __init__(self, recipe: Recipe, log_every: int) -> None:
        super().__init__(recipe, log_every)
        self.step: Any = CheckedStep(recipe, self.step)


class CheckedStep:
    """The step of a `CheckedProgram`.

    Args:
        recipe: what does not change in the run.
        step: the step without checks.
    """

    def __init__(self, recipe: Recipe, step: Compiled) -> None:
        def run(state: TrainState, batch: Batch, mask: Any) -> Any:
            return forward(recipe, state, Rows.of(batch, mask))

        self._plain = step
        self._forward = compiled(checkify.checkify(run, _ALL))
        self._whole = compiled(checkify.checkify(step, _FLOATS))

    @property
    def compilations(self) -> int:
        """How often the step was compiled."""
        return self._plain.compilations

    def place(self, batch: HostBatch) -> HostBatch:
        """Starts the transfer of a batch."""
        return self._plain.place(batch)

    def __call__(
        self, state: TrainState, window: Any, batch: Batch, mask: Any, last: Array
    ) -> Any:
        """Makes a step.

        Raises:
            DebugError: what the checks have found.
        """
        number = int(state.counters.batches)
        _raise(self._forward(state, batch, mask)[0], "the forward pass", number)
        error, result = self._whole(state, window, batch, mask, last)
        overflow = int(result[0].counters.not_finite) > int(state.counters.not_finite)
        # An overflow is answered by a lower scale, as long as there is one.
        if bool(state.loss_scale.at_minimum) or not overflow:
            _raise(error, "the training step", number)
        return result


class CheckedPrograms(Programs):
    """The compiled functions of a trainer whose training steps are checked, on one device."""

    def forget(self, engine: Engine) -> None:
        """Drops all of them; a checked step runs where its state lies."""
        super().forget(ONE_DEVICE)

    def train(self, recipe: Recipe) -> TrainProgram:
        """Returns the checked training step of one phase of the run."""
        if recipe not in self._train:
            self._train[recipe] = CheckedProgram(recipe, self._log_every)
        return self._train[recipe]


def _raise(error: checkify.Error, part: str, batch: int) -> None:
    found = error.get_exception()
    if found is not None:
        raise DebugError(
            " ".join(str(found).split()).rstrip("."),
            where=f"{part} of batch {batch} of the run{_source(found)}",
            fix="look at that operation and at the values of that batch; what jnp.where "
            "leaves out is computed all the same: make it harmless before that",
        )


def _source(error: Any) -> str:
    """Returns where the operation stands: the innermost line that is no library's.

    Of what a library has compiled by itself (an embedding, say) only its own lines are known.
    """
    frames = traceback.extract_tb(error.traceback_info.as_python_traceback())
    for libraries in (_LIBRARIES, _LIBRARIES[:1]):
        own = [frame for frame in frames if not frame.filename.startswith(libraries)]
        if own:
            return f": {own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}"
    return ""


def checkified(trainer: Trainer, call: FitCall) -> FitResult:
    """Runs `fit` with every operation of its steps checked, from the trainer's state on. Slow.

    Args:
        trainer: the trainer, which stays as it is.
        call: the arguments of `fit`.

    Raises:
        DebugError: the first NaN, division by zero or index out of range, with the source line
            and the number of the batch.
    """
    twin = twin_of(trainer, goes_on=True, programs=CheckedPrograms, workdir=None, hooks=())
    say(
        trainer,
        "debug='checkify': every operation is checked and every step waited for. Compiling and "
        "running take several times as long; nothing of it is kept",
    )
    return twin.fit(call.ds, **{k: v for k, v in call._asdict().items() if k != "ds"})
