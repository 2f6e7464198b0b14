"""Rows of Polyak's step size."""

from __future__ import annotations

from functools import partial

from tests.cases.base import FUNCTION, Case, halving
from tests.oracles.polyak import polyak


def _slowing(count: float) -> float:
    return 0.5 + 0.5 * halving(count)


CASES = (
    Case(
        "polyak_sgd",
        lambda o, lr: o.polyak_sgd(100 * lr),
        takes_value=True,
        oracle=partial(polyak, limit=1.0),
    ),
    Case(
        "polyak_sgd(scaling=schedule, f_min, eps, variant=sps+)",
        lambda o, lr: o.polyak_sgd(100 * lr, _slowing, 1e-4, 1e-6, "sps+"),
        takes_value=True,
        oracle=partial(polyak, limit=1.0, scaling=_slowing, f_min=1e-4, eps=1e-6),
        lacks={"prints": FUNCTION},
    ),
)
