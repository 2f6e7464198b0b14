"""Rows of Adagrad."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.adagrad import adagrad

CASES = (
    Case("adagrad", lambda o, lr: o.adagrad(lr), 0.5, 0.5, oracle=per_array(adagrad)),
    Case(
        "adagrad(schedule, initial_accumulator_value=0, eps=0)",
        lambda o, lr: o.adagrad(lambda count: lr * (0.5 + 0.5 * halving(count)), 0.0, 0.0),
        0.5,
        0.5,
        oracle=per_array(
            adagrad,
            initial=0.0,
            eps=0.0,
            learning_rate=lambda step: 1e-2 * (0.5 + 0.5 * halving(step)),
        ),
        lacks={"prints": FUNCTION},
    ),
)
