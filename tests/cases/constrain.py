"""Rows of constraints and of normalised updates."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from tests.cases.base import Case, Lack, per_array
from tests.oracles.changed import centred, descent, jointly


def _optax_leaves_a_complex_parameter_anywhere(case: Case) -> None:
    """There is no nonnegative complex number to be kept at."""
    tx, z = case.judge(1.0), {"w": jnp.array([1.0 + 1j]), "rest": {}}
    updates, _ = tx.update({"w": jnp.array([0.5 + 9j]), "rest": {}}, tx.init(z), z)
    assert (z["w"] + updates["w"]).imag < 0


def _a_negative_parameter_is_moved_to_zero(case: Case) -> None:
    """So a zero gradient moves it, and a target below zero is not reached. With optax too."""
    tx, x = case.judge(), jnp.array([-1.0, 2.0])
    updates, _ = tx.update(jnp.zeros(2), tx.init(x), x)
    assert (x + updates).tolist() == [0.0, 2.0]


def _optax_replaces_nan_too(case: Case) -> None:
    tx, x = case.judge(1.0), jnp.ones(2)
    updates, _ = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(x), x)
    assert updates.tolist() == [0.0, -1.0]


NO_SIGN = Lack("complex numbers have no sign", _optax_leaves_a_complex_parameter_anywhere)
BOUNDED = Lack("parameters below 0 are moved to 0", _a_negative_parameter_is_moved_to_zero)
REPLACED = Lack("to replace NaN is its purpose", _optax_replaces_nan_too)

CASES = (
    Case(
        "chain(sgd, keep_params_nonnegative)",
        lambda o, lr: o.chain(o.sgd(lr), o.keep_params_nonnegative()),
        rosenbrock=2e-3,
        needs_params=True,
        lacks={
            "complex": NO_SIGN,
            "complex_parity": NO_SIGN,
            "parabola": BOUNDED,
            "rests": BOUNDED,
        },
    ),
    Case(
        "chain(zero_nans, sgd)",
        lambda o, lr: o.chain(o.zero_nans(), o.sgd(lr)),
        rosenbrock=2e-3,
        lacks={"passes_nan": REPLACED},
    ),
    Case(
        "chain(normalize_by_update_norm, sgd)",
        lambda o, lr: o.chain(o.normalize_by_update_norm(2.0, eps=1e-3), o.sgd(lr)),
        0.01,
        oracle=partial(jointly, factor=lambda norm: 2.0 / (norm + 1e-3)),
    ),
    Case(
        "chain(centralize, sgd)",
        lambda o, lr: o.chain(o.centralize(), o.sgd(lr)),
        rosenbrock=2e-3,
        oracle=per_array(descent, change=centred),
    ),
)
