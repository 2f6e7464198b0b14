"""Rows of RAdam."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.radam import radam

CASES = (
    Case("radam", lambda o, lr: o.radam(lr), rosenbrock=1e-2, oracle=per_array(radam)),
    Case(
        "radam(schedule, threshold, nesterov)",
        lambda o, lr: o.radam(
            lambda count: lr * halving(count), 0.8, 0.99, 1e-6, 1e-8, 7.5, nesterov=True
        ),
        rosenbrock=1.5e-3,
        oracle=per_array(
            radam,
            learning_rate=lambda step: 1e-2 * halving(step),
            b1=0.8,
            b2=0.99,
            eps=1e-6,
            eps_root=1e-8,
            threshold=7.5,
            nesterov=True,
        ),
        lacks={"prints": FUNCTION},
    ),
)
