"""Rows of Lion."""

from __future__ import annotations

import numpy as np

from tests.cases.base import FUNCTION, IMAGINARY, PREFIX_MASK, Case, halving, per_array
from tests.oracles.lion import lion, refined

CASES = (
    Case(
        "lion",
        lambda o, lr: o.lion(lr),
        5e-3,
        weight_decay=1e-3,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(lion, weight_decay=lambda step: 1e-3),
    ),
    Case(
        "lion(schedule, mu_dtype=bfloat16, mask=tree)",
        lambda o, lr: o.lion(
            lambda count: lr * halving(count), 0.95, 0.98, "bfloat16", 1e-2, PREFIX_MASK
        ),
        5e-3,
        1e-2,
        weight_decay=1e-2,
        needs_params=True,
        lacks={"prints": FUNCTION, "complex_parity": IMAGINARY},
    ),
    Case(
        "scale_by_lion(smooth), scale",
        lambda o, lr: o.chain(o.scale_by_lion(mode="smooth", smooth_beta=2.0), o.scale(-lr)),
        rosenbrock=1e-3,
        oracle=per_array(lion, sign=lambda c: np.tanh(2.0 * c)),
    ),
    Case(
        "scale_by_lion(refined), scale",
        lambda o, lr: o.chain(o.scale_by_lion(mode="refined"), o.scale(-lr)),
        rosenbrock=1e-3,
        oracle=per_array(lion, sign=refined),
    ),
)
