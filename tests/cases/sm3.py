"""Rows of SM3."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from tests.cases.base import FUNCTION, Case, Lack, WithoutScalar, halving, per_array
from tests.oracles.sm3 import sm3


def _optax_refuses_complex(case: Case) -> None:
    with pytest.raises(ValueError, match="complex"):
        case.judge().init(jnp.array([1j]))


def _optax_refuses_a_schedule(case: Case) -> None:
    with pytest.raises(TypeError):
        case.judge()


COMPLEX = Lack("optax refuses complex parameters", _optax_refuses_complex)
SCHEDULE = Lack("optax's sm3 negates the learning rate itself", _optax_refuses_a_schedule)

CASES = (
    WithoutScalar(
        "sm3",
        lambda o, lr: o.sm3(lr),
        rosenbrock=0.1,
        oracle=per_array(sm3),
        lacks={"complex_parity": COMPLEX},
    ),
    Case(
        "sm3(schedule, momentum)",
        lambda o, lr: o.sm3(lambda count: lr * (0.5 + 0.5 * halving(count)), 0.5),
        rosenbrock=0.1,
        oracle=per_array(
            sm3, momentum=0.5, learning_rate=lambda step: 1e-2 * (0.5 + 0.5 * halving(step))
        ),
        lacks={"in_optax": SCHEDULE, "prints": FUNCTION},
    ),
    WithoutScalar(
        "chain(scale_by_sm3(b1, b2, eps), scale)",
        lambda o, lr: o.chain(o.scale_by_sm3(0.8, 0.99, 1e-6), o.scale(-lr)),
        1e-2,
        oracle=per_array(sm3, momentum=0.8, b2=0.99, eps=1e-6),
        lacks={"complex_parity": COMPLEX},
    ),
)
