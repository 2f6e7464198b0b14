"""Rows of the distance over gradients."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain import optim
from tests.cases.base import Case, Lack, WithoutScalar, per_array
from tests.oracles.distance import dog


class Promoting(WithoutScalar):
    """Optax multiplies by factors of shape (1,), so its updates of scalars are no scalars."""

    def judge(self, learning_rate: Any = 1e-2) -> Any:
        tx = super().judge(learning_rate)

        def update(*args: Any) -> Any:
            with jax.numpy_rank_promotion("allow"):
                return tx.update(*args)

        return optim.GradientTransformation(tx.init, update)


def _optax_widens_its_state(case: Case) -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16), "rest": {}}
    state = case.judge().init(params)
    after = case.judge().update(params, state, params)[1]
    assert state[0].max_dist["w"].dtype == jnp.bfloat16
    assert after[0].max_dist["w"].dtype == jnp.float32


def _optax_squares_without_the_modulus(case: Case) -> None:
    params = {"w": jnp.full(3, 2j), "rest": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it drops the imaginary part of the start as well
        assert jnp.iscomplexobj(case.judge().init(params)[0].max_dist["w"])


CASES = (
    Promoting(
        "chain(scale_by_distance_over_gradients, scale)",
        lambda o, lr: o.chain(o.scale_by_distance_over_gradients(1e-3), o.scale(-lr)),
        1.0,
        0.1,
        needs_params=True,
        oracle=per_array(dog, reps_rel=1e-3),
        lacks={
            "keeps_bfloat16": Lack(
                "sums and distances are float32, as in optax", _optax_widens_its_state
            ),
            "complex_parity": Lack(
                "optax takes complex squares for lengths", _optax_squares_without_the_modulus
            ),
        },
    ),
)
