"""Debugging runs: what `fit(debug=...)` does. Each is one function of trainer and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flaxtrain.checks import check_choice
from flaxtrain.loop.arguments import FitCall
from flaxtrain.loop.debug.checkified import checkified
from flaxtrain.loop.debug.overfit import overfit
from flaxtrain.loop.debug.smoke import smoke
from flaxtrain.loop.debug.twin import check_lasting
from flaxtrain.loop.result import FitResult

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["DEBUG_RUNS", "debug_fit"]

DEBUG_RUNS: Mapping[str, Callable[[Trainer, FitCall], FitResult]] = {
    "smoke": smoke,
    "overfit": overfit,
    "checkify": checkified,
}
"""The debugging runs by name."""


def debug_fit(mode: str, trainer: Trainer, call: FitCall) -> FitResult:
    """Makes a debugging run.

    Args:
        mode: a key of `DEBUG_RUNS`.
        trainer: the trainer, which stays as it is.
        call: the arguments of `fit`.

    Raises:
        UnknownNameError: there is no such mode; the nearest one is named.
        ArgumentError: an argument of `fit` is out of range.
        ArgumentTypeError: one has the wrong type.
        DataError: the data set can be iterated once only.
    """
    check_choice("debug", mode, DEBUG_RUNS, where="fit")
    for ds in (call.ds, call.eval_ds):
        check_lasting(ds, where=f"fit(debug={mode!r})")
    call.check()
    return DEBUG_RUNS[mode](trainer, call)
