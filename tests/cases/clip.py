"""Rows of clipping; that of the global norm is among the chains."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from tests.cases.base import Case, Lack, per_array
from tests.oracles.changed import bounded_entries, bounded_rms, bounded_units, descent


def _optax_refuses_complex_entries(case: Case) -> None:
    tx, z = case.judge(), {"w": jnp.array([3j]), "rest": {}}
    with pytest.raises((TypeError, ValueError)):
        tx.update(z, tx.init(z), z)


MAGNITUDE = Lack("complex entries are bounded in magnitude", _optax_refuses_complex_entries)

CASES = (
    Case(
        "chain(clip, sgd)",
        lambda o, lr: o.chain(o.clip(1.0), o.sgd(lr)),
        rosenbrock=2e-3,
        oracle=per_array(descent, change=bounded_entries(1.0)),
        lacks={"complex_parity": MAGNITUDE},
    ),
    Case(
        "chain(clip_by_block_rms, sgd(momentum))",
        lambda o, lr: o.chain(o.clip_by_block_rms(0.5), o.sgd(lr, 0.9)),
        0.02,
        5e-4,
        oracle=per_array(descent, change=bounded_rms(0.5), momentum=0.9),
    ),
    Case(
        "chain(adaptive_grad_clip, sgd)",
        lambda o, lr: o.chain(o.adaptive_grad_clip(1.0, eps=0.1), o.sgd(lr)),
        rosenbrock=2e-3,
        needs_params=True,
        oracle=per_array(descent, change=bounded_units(1.0, 0.1)),
    ),
)
