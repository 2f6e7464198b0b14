"""Rows of averaged gradients."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.sign import averaged_sgd

CASES = (
    Case(
        "chain(ema, sgd)",
        lambda o, lr: o.chain(o.ema(0.9), o.sgd(lr)),
        rosenbrock=2e-3,
        oracle=per_array(averaged_sgd, decay=0.9),
    ),
    Case(
        "chain(ema(debias=False), sgd(schedule))",
        lambda o, lr: o.chain(
            o.ema(0.8, debias=False), o.sgd(lambda count: lr * (0.5 + 0.5 * halving(count)))
        ),
        rosenbrock=2e-3,
        oracle=per_array(
            averaged_sgd,
            decay=0.8,
            debias=False,
            learning_rate=lambda step: 1e-2 * (0.5 + 0.5 * halving(step)),
        ),
        lacks={"prints": FUNCTION},
    ),
)
