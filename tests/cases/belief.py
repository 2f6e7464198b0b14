"""Rows of AdaBelief."""

from __future__ import annotations

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.belief import adabelief

CASES = (
    Case("adabelief", lambda o, lr: o.adabelief(lr), oracle=per_array(adabelief)),
    Case(
        "adabelief(schedule, nesterov)",
        lambda o, lr: o.adabelief(
            lambda count: lr * halving(count), 0.8, 0.99, 1e-12, 1e-10, nesterov=True
        ),
        oracle=per_array(
            adabelief,
            learning_rate=lambda step: 1e-2 * halving(step),
            b1=0.8,
            b2=0.99,
            eps=1e-12,
            eps_root=1e-10,
            nesterov=True,
        ),
        lacks={"prints": FUNCTION},
    ),
)
