"""The part of the trainer that uses weights, and trains none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flaxtrain.answering import answering_class
from flaxtrain.data import Stream
from flaxtrain.errors import StateError
from flaxtrain.loop.batch_stats import with_batch_stats
from flaxtrain.loop.evaluation import evaluate, predict
from flaxtrain.loop.streams import on_devices, stream_in_order, training_stream
from flaxtrain.parallel import peer_watch
from flaxtrain.train import TrainState
from flaxtrain.typing import HostTree

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["Evaluating", "evaluated"]


@answering_class()
class Evaluating:
    """What a `Trainer` does with the weights it has."""

    def evaluate(
        self, ds: Any, *, batch_size: int | None = None, weights: str | None = "raw"
    ) -> dict[str, float]:
        """Returns loss and metrics over all of `ds`, exact whatever the batch size.

        Args:
            ds: as for `fit`; one pass, in order.
            batch_size: for arrays only; default 128.
            weights: `"raw"`, the trained weights; `"ema"`, their average; `"both"`, in one
                pass, with names such as `loss/ema`; None: what `fit` reports, all there are.

        Raises:
            StateError: nothing was trained yet, or there is no average.
            UnknownNameError: `weights` is another word.
        """
        with peer_watch().guard():
            trainer, state = _trained(self, "evaluate")
            return evaluated(trainer, ds, batch_size=batch_size, state=state, weights=weights)

    def predict(
        self, ds: Any, *, batch_size: int | None = None, weights: str = "raw"
    ) -> HostTree:
        """Returns the model's outputs for all of `ds`, in order, without padding.

        Args:
            ds: as for `fit`; targets may be missing.
            batch_size: for arrays only; default 128.
            weights: `"raw"`, the trained weights, or `"ema"`, their average.

        Returns:
            Numpy arrays `[examples, ...]`, in the structure of the model's output.

        Raises:
            StateError: nothing was trained yet, or there is no average.
            UnknownNameError: `weights` is another word.
        """
        with peer_watch().guard():
            trainer, state = _trained(self, "predict")
            assert trainer.recipe is not None
            program = trainer._programs.predict(trainer.recipe)
            stream = _in_order(trainer, ds, batch_size)
            return predict(program, state, stream, weights, trainer._programs.engine)

    def recompute_batch_stats(
        self,
        ds: Any,
        n_batches: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Gives the averaged weights statistics of BatchNorm of their own, which `Swa` needs.

        They are those of all rows, run in training mode. What is trained stays as it is.

        Args:
            ds: as for `fit`, in the order of its first epoch.
            n_batches: number of batches; None: one epoch.
            batch_size: for arrays only; default 128.

        Raises:
            FlaxtrainError: there is no average with statistics, no BatchNorm, too little data,
                or a statistic is not finite; the state is as it was.
        """
        with peer_watch().guard():
            trainer, state = _trained(self, "recompute_batch_stats")
            assert trainer.recipe is not None
            recipe, programs = trainer.recipe, trainer._programs
            stream, _ = training_stream(ds, batch_size, trainer.seed)
            stream, engine = on_devices(stream, trainer._devices), programs.engine
            program = programs.statistics(recipe)
            state = with_batch_stats(recipe, program, engine, state, stream, n_batches)
            trainer.state = engine.place_state(state)


def evaluated(
    trainer: Trainer,
    ds: Any,
    *,
    batch_size: int | None,
    state: TrainState,
    weights: str | None = None,
) -> dict[str, float]:
    """Returns loss and metrics of a state over all of `ds`; see `Evaluating.evaluate`."""
    assert trainer.recipe is not None
    program = trainer._programs.evaluate(trainer.recipe)
    stream = _in_order(trainer, ds, batch_size)
    return evaluate(trainer.recipe, program, state, stream, weights)


def _in_order(trainer: Trainer, ds: Any, batch_size: int | None) -> Stream:
    return on_devices(stream_in_order(ds, batch_size), trainer._devices)


def _trained(trainer: Any, verb: str) -> tuple[Trainer, TrainState]:
    if trainer.state is None:
        raise StateError("there is no state yet", where=f"Trainer.{verb}", fix="call fit first")
    return trainer, trainer.state
