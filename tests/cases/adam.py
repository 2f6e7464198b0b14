"""Rows of Adam and AdamW."""

from __future__ import annotations

import jax.numpy as jnp

from tests.cases.base import (
    FUNCTION,
    IMAGINARY,
    MATRICES,
    ONLY_W,
    PREFIX_MASK,
    PROMOTES,
    Case,
    halving,
    matrices,
    per_array,
)
from tests.oracles.adam import adam

CASES = (
    Case("adam", lambda o, lr: o.adam(lr), rosenbrock=1e-2, oracle=per_array(adam)),
    Case(
        "adam(b1, b2, eps, eps_root)",
        lambda o, lr: o.adam(lr, 0.8, 0.95, 1e-6, 1e-8),
        rosenbrock=1e-2,
        oracle=per_array(adam, b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-8),
    ),
    Case(
        "adam(nesterov)",
        lambda o, lr: o.adam(lr, nesterov=True),
        rosenbrock=1e-2,
        oracle=per_array(adam, nesterov=True),
    ),
    Case(
        "nadam",
        lambda o, lr: o.nadam(lr),
        rosenbrock=1e-2,
        oracle=per_array(adam, nesterov=True),
    ),
    Case(
        "nadamw",
        lambda o, lr: o.nadamw(lr),
        rosenbrock=1e-2,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(adam, nesterov=True, weight_decay=lambda step: 1e-4),
    ),
    Case(
        "adam(mu_dtype=float32)",
        lambda o, lr: o.adam(lr, mu_dtype="float32"),
        rosenbrock=1e-2,
        lacks={"keeps_bfloat16": PROMOTES, "complex_parity": IMAGINARY},
    ),
    Case(
        "adam(schedule, mu_dtype=bfloat16)",
        lambda o, lr: o.adam(lambda count: lr * halving(count), mu_dtype=jnp.bfloat16),
        rosenbrock=1e-2,
        lacks={"prints": FUNCTION, "complex_parity": IMAGINARY},
    ),
    Case(
        "adamw",
        lambda o, lr: o.adamw(lr),
        rosenbrock=1e-2,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(adam, weight_decay=lambda step: 1e-4),
    ),
    Case(
        "adamw(mask=tree)",
        lambda o, lr: o.adamw(lr, weight_decay=1e-3, mask=PREFIX_MASK),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(adam, decayed=ONLY_W, weight_decay=lambda step: 1e-3),
    ),
    Case(
        "adamw(schedules, mask=function, nesterov)",
        lambda o, lr: o.adamw(
            lambda count: lr * halving(count),
            weight_decay=lambda count: 1e-3 * halving(count),
            mask=matrices,
            nesterov=True,
        ),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(
            adam,
            decayed=MATRICES,
            nesterov=True,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3 * halving(step),
        ),
        lacks={"prints": FUNCTION},
    ),
)
