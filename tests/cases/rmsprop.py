"""Rows of RMSProp."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.rmsprop import rmsprop

CASES = (
    Case("rmsprop", lambda o, lr: o.rmsprop(lr), 1e-2, 1e-3, oracle=per_array(rmsprop)),
    Case(
        "rmsprop(centered, momentum, initial_scale)",
        lambda o, lr: o.rmsprop(lr, 0.95, 1e-2, initial_scale=0.5, centered=True, momentum=0.8),
        1e-3,
        1e-3,
        oracle=per_array(
            rmsprop, decay=0.95, eps=1e-2, initial_scale=0.5, centered=True, momentum=0.8
        ),
    ),
    Case(
        "rmsprop(schedule, eps_in_sqrt=False, nesterov, bias_correction)",
        lambda o, lr: o.rmsprop(
            lambda count: lr * halving(count),
            eps_in_sqrt=False,
            momentum=0.5,
            nesterov=True,
            bias_correction=True,
        ),
        1e-3,
        1e-3,
        oracle=per_array(
            rmsprop,
            eps_in_sqrt=False,
            momentum=0.5,
            nesterov=True,
            corrected=True,
            learning_rate=lambda step: 1e-2 * halving(step),
        ),
        lacks={"prints": FUNCTION},
    ),
)
