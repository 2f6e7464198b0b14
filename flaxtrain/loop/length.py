"""How long a run is, said in steps or in epochs."""

from __future__ import annotations

from typing import Any

from flaxtrain.checks import check_integer
from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, DataError

__all__ = [
    "check_length",
    "check_repeats",
    "horizon_of",
    "surely_ragged",
    "used_up_by_one_pass",
]


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


def horizon_of(stream: Stream, steps: int | None, epochs: int | None) -> Horizon:
    """Returns the length of a run over `stream`, as far as it is known."""
    length = stream.steps_per_epoch
    total = steps
    if epochs is not None and length is not None:
        total = epochs * length
    return Horizon(total_steps=total, steps_per_epoch=length, batch_size=stream.rows)


def surely_ragged(stream: Stream) -> bool:
    """Whether it is known beforehand that a batch will need padding."""
    length, examples = stream.steps_per_epoch, stream.examples_per_epoch
    return bool(
        stream.may_be_padded and length and examples and length * stream.rows != examples
    )
