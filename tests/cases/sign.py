"""Rows of sign descent and Signum: every step is as large as the learning rate, which falls."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.sign import sign_sgd

CASES = (
    Case(
        "sign_sgd(schedule)",
        lambda o, lr: o.sign_sgd(lambda count: lr * halving(count)),
        1e-2,
        oracle=per_array(sign_sgd, learning_rate=lambda step: 1e-2 * halving(step)),
        lacks={"prints": FUNCTION},
    ),
    Case(
        "signum(schedule)",
        lambda o, lr: o.signum(lambda count: lr * halving(count)),
        1e-2,
        oracle=per_array(sign_sgd, beta=0.9, learning_rate=lambda step: 1e-2 * halving(step)),
        lacks={"prints": FUNCTION},
    ),
)
