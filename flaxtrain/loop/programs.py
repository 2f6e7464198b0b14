"""The compiled functions of a trainer, each made when it is first asked for."""

from __future__ import annotations

from flaxtrain.loop.batch_stats import statistics_program
from flaxtrain.loop.step_programs import EvalProgram, TrainProgram, seeing_all
from flaxtrain.loop.steps_per_call import StepsPerCall
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.train import Recipe, predict_step

__all__ = ["Programs"]


class Programs:
    """The compiled functions of a trainer.

    Args:
        log_every: number of batches between two log points.
        steps_per_call: how many steps a call makes: a number, or `"auto"`.

    Attributes:
        engine: where they run.
        steps_per_call: how many steps a call makes.
    """

    def __init__(self, log_every: int, steps_per_call: int | str = 1) -> None:
        self._log_every = log_every
        self.steps_per_call = StepsPerCall(steps_per_call)
        self.forget(ONE_DEVICE)

    def forget(self, engine: Engine) -> None:
        """Drops all of them: the next run is of another model, which runs on `engine`."""
        self.engine = engine
        self.steps_per_call.forget()
        self._train: dict[Recipe, TrainProgram] = {}
        self._statistics: dict[Recipe, Compiled] = {}
        self._eval: EvalProgram | None = None
        self._predict: Compiled | None = None

    @property
    def compilations(self) -> dict[str, int]:
        """How often the steps of training and of evaluation were compiled so far."""
        return {
            "train": sum(program.compilations for program in self._train.values()),
            "eval": 0 if self._eval is None else self._eval.step.compilations,
        }

    def train(self, recipe: Recipe) -> TrainProgram:
        """Returns the training step of one phase of the run."""
        if recipe not in self._train:
            self._train[recipe] = TrainProgram(recipe, self._log_every, self.engine)
        return self._train[recipe]

    def evaluate(self, recipe: Recipe) -> EvalProgram:
        """Returns the evaluation step: the same one in all phases."""
        if self._eval is None:
            self._eval = EvalProgram(recipe, self.engine)
        return self._eval

    def statistics(self, recipe: Recipe) -> Compiled:
        """Returns the function that forms BatchNorm's statistics in one phase of the run."""
        if recipe not in self._statistics:
            self._statistics[recipe] = statistics_program(recipe, self.engine)
        return self._statistics[recipe]

    def predict(self, recipe: Recipe) -> Compiled:
        """Returns the function from state and batch to the model's output."""
        if self._predict is None:
            recipe = seeing_all(recipe, self.engine)
            self._predict = self.engine.compiled_rows(
                lambda state, batch: predict_step(recipe, state, batch)
            )
        return self._predict
