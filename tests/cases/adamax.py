"""Rows of Adamax."""

from __future__ import annotations

from tests.cases.base import FUNCTION, ONLY_W, PREFIX_MASK, Case, halving, per_array
from tests.oracles.adamax import adamax

CASES = (
    Case("adamax", lambda o, lr: o.adamax(lr), rosenbrock=1e-2, oracle=per_array(adamax)),
    Case(
        "adamaxw",
        lambda o, lr: o.adamaxw(lr),
        rosenbrock=1e-2,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(adamax, weight_decay=lambda step: 1e-4),
    ),
    Case(
        "adamaxw(schedule, mask=tree)",
        lambda o, lr: o.adamaxw(
            lambda count: lr * halving(count), 0.8, 0.99, 1e-6, 1e-3, PREFIX_MASK
        ),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(
            adamax,
            decayed=ONLY_W,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3,
            b1=0.8,
            b2=0.99,
            eps=1e-6,
        ),
        lacks={"prints": FUNCTION},
    ),
)
