"""How long a run is, said in steps or in epochs."""

from __future__ import annotations

from typing import Any

import jax

from flaxtrain.checks import check_integer
from flaxtrain.data import Stream
from flaxtrain.data.local_rows import rows_as_given
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, DataError
from flaxtrain.spec import AccumulateBatches
from flaxtrain.text import counted
from flaxtrain.train import TrainState

__all__ = [
    "begun_updates",
    "check_length",
    "check_repeats",
    "epochs_and_notes",
    "horizon_of",
    "position_in",
    "total_batches",
    "used_up_by_one_pass",
]

_DEFAULT_EPOCHS = 1


def check_length(steps: int | None, epochs: int | None) -> None:
    """Refuses lengths that are not positive integers, and two at once.

    Raises:
        ArgumentError: both are given, or one is below 1.
        ArgumentTypeError: one is no integer.
    """
    if steps is not None and epochs is not None:
        raise ArgumentError(
            f"both steps={steps} and epochs={epochs} are given",
            where="fit",
            fix="give one of them",
        )
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None:
            check_integer(name, value, minimum=1, where="fit")


def used_up_by_one_pass(ds: Any) -> bool:
    """Whether one pass over `ds` uses it up, as with a generator."""
    return hasattr(ds, "__next__") or getattr(ds, "repeats", True) is False


def check_repeats(ds: Any, epochs: int | None) -> None:
    """Refuses several epochs over an iterator, before anything is taken out of it.

    Raises:
        DataError: `ds` can be iterated once only, and `epochs` is more than one.
    """
    if used_up_by_one_pass(ds) and epochs is not None and epochs > 1:
        raise DataError(
            f"epochs={epochs}, but the {type(ds).__name__} can be iterated once only",
            where="fit",
            fix="pass something that can be iterated again: a function that returns a new "
            "iterator (lambda: make_batches()), a list of batches, or ft.data.batches(...)",
        )


def horizon_of(
    stream: Stream, steps: int | None, epochs: int | None, accumulation: AccumulateBatches
) -> Horizon:
    """Returns the length of a run, as far as it is known.

    Args:
        stream: the training data.
        steps: batches in the run, as `fit` counts them.
        epochs: passes over the data, where `steps` is not given; None: one.
        accumulation: how many batches make an update.
    """
    length = stream.batches_per_epoch
    total = steps
    if steps is None and length is not None:
        total = length * (_DEFAULT_EPOCHS if epochs is None else epochs)
    return Horizon(total, length, rows_as_given(stream), accumulation.count)


def begun_updates(total: int | None, accumulation: AccumulateBatches) -> list[str]:
    """Returns what is to be said of a run that ends within an update.

    Args:
        total: batches in the run; None when not known.
        accumulation: how many of them make an update.
    """
    left = 0 if total is None else total % accumulation.count
    if total is None or not left:
        return []
    if total < accumulation.count:
        return [
            f"the run has {total} batches, and {accumulation.count} make an update: nothing "
            "is learnt before it goes on"
        ]
    return [f"the last {left} of {total} batches make no update before the run goes on"]


def epochs_and_notes(
    steps: int | None, epochs: int | None, accumulation: AccumulateBatches
) -> tuple[int | None, list[str]]:
    """Returns the number of epochs, one where no length is given, and what is to be said of it.

    Args:
        steps: the argument of `fit`.
        epochs: likewise.
        accumulation: how many batches make an update.
    """
    if steps is None and epochs is None:
        return _DEFAULT_EPOCHS, ["neither steps= nor epochs= was given: one epoch"]
    if steps is None or accumulation.count == 1:
        return epochs, []
    updates = counted(steps // accumulation.count, "update")
    return epochs, [
        f"steps={steps} counts batches; they make at most {updates}: schedules and nearly all "
        "else in the spec count updates"
    ]


def total_batches(state: TrainState, length: int | None, fresh: bool) -> int | None:
    """Returns the number of batches at which a run ends.

    A resumed run has a total; a further fit adds to what was done.
    """
    if length is None or fresh:
        return length
    return int(jax.device_get(state.counters.batches)) + length


def position_in(stream: Stream, state: TrainState, fresh: bool) -> int:
    """Returns how many batches of the stream the run has behind it.

    A further `fit` goes on in the middle of an epoch only where epochs have a known length;
    other data sets begin anew.
    """
    goes_on = fresh or (stream.repeats and stream.batches_per_epoch is not None)
    return int(jax.device_get(state.counters.batches)) if goes_on else 0
