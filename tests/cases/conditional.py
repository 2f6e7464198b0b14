"""Rows of transformations that are applied at some steps only, or to finite gradients only."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.cases.base import FUNCTION, Case, Lack


def _optax_leaves_it_out_too(case: Case) -> None:
    params = {"w": jnp.full(3, jnp.nan), "rest": {}}
    updates, _ = case.judge().update(params, case.judge().init(params), params)
    np.testing.assert_array_equal(updates["w"], 0.0)


def not_at_third_steps(step: Any, **extra_args: Any) -> Any:
    return step % 3 != 2


LEFT_OUT = Lack("leaving it out is its purpose", _optax_leaves_it_out_too)

CASES = (
    Case(
        "apply_if_finite(adam)",
        lambda o, lr: o.apply_if_finite(o.adam(lr), 3),
        rosenbrock=1e-2,
        lacks={"passes_nan": LEFT_OUT},
    ),
    Case(
        "conditionally_mask(adamw)",
        lambda o, lr: o.conditionally_mask(o.adamw(lr), not_at_third_steps),
        rosenbrock=1e-2,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        lacks={"prints": FUNCTION},
    ),
    Case(
        "chain(conditionally_transform(trace), sgd)",
        lambda o, lr: o.chain(
            o.conditionally_transform(o.trace(0.5), not_at_third_steps, True), o.sgd(lr)
        ),
        lacks={"prints": FUNCTION},
    ),
)
