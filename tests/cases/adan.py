"""Rows of Adan."""

from __future__ import annotations

from tests.cases.base import FUNCTION, MATRICES, Case, halving, matrices, per_array
from tests.oracles.adan import adan

CASES = (
    Case(
        "adan",
        lambda o, lr: o.adan(lr),
        needs_params=True,
        oracle=per_array(adan),
    ),
    Case(
        "adan(schedules, mask=function)",
        lambda o, lr: o.adan(
            lambda count: lr * halving(count),
            *(0.9, 0.8, 0.999, 1e-6, 1e-6),
            weight_decay=lambda count: 1e-3 * halving(count),
            mask=matrices,
        ),
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(
            adan,
            decayed=MATRICES,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3 * halving(step),
            betas=(0.1, 0.2, 0.001),
            eps=1e-6,
            eps_root=1e-6,
        ),
        lacks={"prints": FUNCTION},
    ),
)
