"""Rows of Rprop. Its learning rate can't be a schedule."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from tests.cases.base import Case, Lack, per_array
from tests.oracles.rprop import rprop


def _optax_raises(case: Case) -> None:
    tx, z = case.judge(), jnp.array([1j])
    with pytest.raises(ValueError, match="complex"):
        tx.update(z, tx.init(z))


CLIPS = Lack("optax clips, which complex numbers refuse", _optax_raises)

# The first step of Rprop itself is 0 for every learning rate, and the laws look at the first. A
# decay, decoupled and scaled by the learning rate, makes rows that depend on it at once.
CASES = (
    Case(
        "chain(rprop, scale, add_decayed_weights, scale)",
        lambda o, lr: o.chain(
            o.rprop(lr), o.scale(-1.0), o.add_decayed_weights(1e-4 * lr), o.scale(-1.0)
        ),
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(rprop, weight_decay=lambda step: 1e-4),
        lacks={"complex_parity": CLIPS},
    ),
    Case(
        "chain(scale_by_rprop(etas, step sizes), add_decayed_weights, scale)",
        lambda o, lr: o.chain(
            o.scale_by_rprop(lr, 0.4, 1.1, 1e-4, 0.02),
            o.add_decayed_weights(1e-3 * lr),
            o.scale(-1.0),
        ),
        weight_decay=1e-3,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(
            rprop,
            eta_minus=0.4,
            eta_plus=1.1,
            smallest=1e-4,
            largest=0.02,
            weight_decay=lambda step: 1e-3,
        ),
        lacks={"complex_parity": CLIPS},
    ),
)
