"""Rows of Adadelta."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from tests.cases.base import FUNCTION, Case, Lack, halving, per_array
from tests.oracles.adadelta import adadelta


def _optax_turns_away_from_the_gradient(case: Case) -> None:
    tx, g = optax.scale_by_adadelta(), jnp.array([1j])
    u, state = tx.update(g, tx.init(g))
    assert state.e_g.real < 0, "the square of an imaginary number"
    assert abs(u.imag) < 1e-3 * abs(u.real)


SQUARES = Lack("optax averages g^2 where |g|^2 is meant", _optax_turns_away_from_the_gradient)

CASES = (
    Case(
        "adadelta",
        lambda o, lr: o.adadelta(lr),
        10.0,
        0.05,
        needs_params=True,
        oracle=per_array(adadelta),
        lacks={"complex_parity": SQUARES},
    ),
    Case(
        "adadelta(schedule, rho, eps)",
        lambda o, lr: o.adadelta(lambda count: lr * halving(count), 0.95, 1e-4),
        2.0,
        1.0,
        needs_params=True,
        oracle=per_array(
            adadelta, rho=0.95, eps=1e-4, learning_rate=lambda step: 1e-2 * halving(step)
        ),
        lacks={"prints": FUNCTION, "complex_parity": SQUARES},
    ),
)
