"""Rows of transformations that look at updates, or lay them out anew, and change none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests.cases.base import FUNCTION, Case, Lack, per_array
from tests.oracles.adam import adam


def largest(tree: Any) -> Any:
    sizes = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack([jnp.float32(0.0), *sizes]))


def _optax_makes_real_leaves_complex(case: Case) -> None:
    params = {"w": jnp.ones(2), "rest": {"z": jnp.ones(2, jnp.complex64)}}
    updates, _ = case.judge().update(params, case.judge().init(params), params)
    assert jnp.iscomplexobj(updates["w"])


ONE_VECTOR = Lack("optax promotes real leaves to complex", _optax_makes_real_leaves_complex)

CASES = (
    Case(
        "flatten(adam)",
        lambda o, lr: o.flatten(o.adam(lr)),
        rosenbrock=1e-2,
        oracle=per_array(adam),
        lacks={"complex_parity": ONE_VECTOR},
    ),
    Case(
        "chain(snapshot, sgd)",
        lambda o, lr: o.chain(o.snapshot("largest", largest), o.sgd(lr)),
        rosenbrock=2e-3,
        lacks={"prints": FUNCTION},
    ),
)
