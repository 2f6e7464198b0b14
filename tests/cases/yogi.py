"""Rows of Yogi."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from tests.cases.base import FUNCTION, Case, Lack, halving, per_array
from tests.oracles.yogi import yogi


def _optax_moves_too(case: Case) -> None:
    tx, zeros = case.judge(), jnp.zeros(3)
    updates: Any = tx.update(zeros, tx.init(zeros), zeros)[0]
    assert bool(jnp.all(updates < 0))


STARTS = Lack(
    "the first moment starts at a positive value, as in optax, and is a step by itself",
    _optax_moves_too,
)

CASES = (
    Case(
        "yogi",
        lambda o, lr: o.yogi(lr),
        rosenbrock=1e-2,
        oracle=per_array(yogi),
        lacks={"rests": STARTS},
    ),
    Case(
        "scale_by_yogi(eps_root, initial), sgd(schedule)",
        lambda o, lr: o.chain(
            o.scale_by_yogi(0.8, 0.99, 1e-4, 1e-6, 1e-2),
            o.sgd(lambda count: lr * halving(count)),
        ),
        rosenbrock=1e-2,
        oracle=per_array(
            yogi,
            learning_rate=lambda step: 1e-2 * halving(step),
            b1=0.8,
            b2=0.99,
            eps=1e-4,
            eps_root=1e-6,
            start=1e-2,
        ),
        lacks={"rests": STARTS, "prints": FUNCTION},
    ),
)
