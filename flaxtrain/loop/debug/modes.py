"""Debugging runs: what `fit(debug=...)` does. Each is one function of twins and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flaxtrain.checks import check_choice
from flaxtrain.loop.debug.checkified import checkified
from flaxtrain.loop.debug.overfit import overfit
from flaxtrain.loop.debug.smoke import smoke
from flaxtrain.loop.debug.twin import FitCall, MakeTwin, check_lasting
from flaxtrain.loop.result import FitResult

__all__ = ["DEBUG_RUNS", "debug_fit"]

DEBUG_RUNS: Mapping[str, Callable[[MakeTwin, FitCall], FitResult]] = {
    "smoke": smoke,
    "overfit": overfit,
    "checkify": checkified,
}
"""The debugging runs by name."""


def debug_fit(mode: str, make: MakeTwin, call: FitCall) -> FitResult:
    """Makes a debugging run.

    Args:
        mode: a key of `DEBUG_RUNS`.
        make: makes twins of the trainer.
        call: the arguments of `fit`.

    Raises:
        UnknownNameError: there is no such mode; the nearest one is named.
        DataError: the data set can be iterated once only.
    """
    check_choice("debug", mode, DEBUG_RUNS, where="fit")
    for ds in (call.ds, call.eval_ds):
        check_lasting(ds, where=f"fit(debug={mode!r})")
    return DEBUG_RUNS[mode](make, call)
