"""Rows of stochastic gradient descent."""

from __future__ import annotations

import jax.numpy as jnp

from tests.cases.base import FUNCTION, IMAGINARY, Case, halving, per_array
from tests.oracles.sgd import sgd

CASES = (
    Case("sgd", lambda o, lr: o.sgd(lr), rosenbrock=2e-3, oracle=per_array(sgd)),
    Case(
        "sgd(momentum)",
        lambda o, lr: o.sgd(lr, momentum=0.9),
        0.02,
        5e-4,
        oracle=per_array(sgd, momentum=0.9),
    ),
    Case(
        "sgd(nesterov)",
        lambda o, lr: o.sgd(lr, 0.9, nesterov=True),
        0.02,
        5e-4,
        oracle=per_array(sgd, momentum=0.9, nesterov=True),
    ),
    Case(
        "sgd(accumulator_dtype=bfloat16)",
        lambda o, lr: o.sgd(lr, 0.9, accumulator_dtype=jnp.bfloat16),
        0.02,
        2e-3,
        lacks={"complex_parity": IMAGINARY},
    ),
    Case(
        "sgd(schedule, momentum)",
        lambda o, lr: o.sgd(lambda count: lr * halving(count), 0.9),
        0.05,
        1e-3,
        oracle=per_array(sgd, momentum=0.9, learning_rate=lambda step: 1e-2 * halving(step)),
        lacks={"prints": FUNCTION},
    ),
)
