"""Rows of optimistic gradients and optimistic Adam."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

from tests.cases.base import FUNCTION, Case, halving, per_array
from tests.oracles.optimistic import optimistic, optimistic_adam


def _first_version(o: ModuleType, lr: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optax prefers the second version
        return o.optimistic_adam(lr, 0.02, nesterov=False)


CASES = (
    Case(
        "optimistic_gradient_descent",
        lambda o, lr: o.optimistic_gradient_descent(lr),
        rosenbrock=5e-4,
        oracle=per_array(optimistic),
    ),
    Case(
        "optimistic_gradient_descent(schedule, alpha, beta)",
        lambda o, lr: o.optimistic_gradient_descent(
            lambda count: lr * (0.5 + 0.5 * halving(count)), 0.9, 0.5
        ),
        oracle=per_array(
            optimistic,
            alpha=0.9,
            beta=0.5,
            learning_rate=lambda step: 1e-2 * (0.5 + 0.5 * halving(step)),
        ),
        lacks={"prints": FUNCTION},
    ),
    Case(
        "optimistic_adam(optimism)",
        _first_version,
        0.05,
        5e-3,
        oracle=per_array(
            optimistic_adam,
            nesterov=False,
            alpha=0.01,
            beta=0.02,
            learning_rate=lambda step: 1.0,
        ),
    ),
    Case(
        "optimistic_adam_v2",
        lambda o, lr: o.optimistic_adam_v2(lr),
        0.05,
        5e-3,
        oracle=per_array(optimistic_adam),
    ),
)
