"""Rows of AMSGrad."""

from __future__ import annotations

from tests.cases.base import FUNCTION, IMAGINARY, Case, halving, per_array
from tests.oracles.amsgrad import amsgrad

CASES = (
    Case("amsgrad", lambda o, lr: o.amsgrad(lr), rosenbrock=1e-2, oracle=per_array(amsgrad)),
    Case(
        "amsgrad(without corrections)",
        lambda o, lr: o.amsgrad(lr, bias_correction_mu=False, bias_correction_nu=False),
        rosenbrock=1e-2,
        oracle=per_array(amsgrad, corrects_m=False, corrects_v=False),
    ),
    Case(
        "amsgrad(schedule, mu_dtype=bfloat16)",
        lambda o, lr: o.amsgrad(
            lambda count: lr * halving(count), 0.8, 0.99, 1e-6, 1e-8, "bfloat16"
        ),
        rosenbrock=1e-2,
        lacks={"prints": FUNCTION, "complex_parity": IMAGINARY},
    ),
)
