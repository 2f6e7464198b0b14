"""Rows of gradient descent with noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxtrain import optim
from tests.cases.base import FUNCTION, Case, Lack, halving


class WithKey(Case):
    """The tests keep states in numpy, which can't hold keys: here they see a key's numbers."""

    def ours(self, learning_rate: Any = 1e-2) -> optim.GradientTransformation:
        tx = super().ours(learning_rate)
        init, update = _with_numbers(tx)
        return replace(tx, init=init, update=update)

    def judge(self, learning_rate: Any = 1e-2) -> optax.GradientTransformation:
        return optax.GradientTransformationExtraArgs(
            *_with_numbers(super().judge(learning_rate))
        )


def _with_numbers(tx: Any) -> tuple[Any, Any]:
    def numbers(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    def key(leaf: Any) -> Any:
        return jax.random.wrap_key_data(leaf) if leaf.dtype == jnp.uint32 else leaf

    def init(params: Any) -> Any:
        return jax.tree.map(numbers, tx.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, state = tx.update(updates, jax.tree.map(key, state), params, **extra)
        return updates, jax.tree.map(numbers, state)

    return init, update


def _noise_moves_at_rest(case: Case) -> None:
    tx, zero = case.judge(), jnp.zeros(3)
    assert bool(jnp.all(tx.update(zero, tx.init(zero))[0] != 0))


NOISE = Lack("noise is added to a zero gradient as well", _noise_moves_at_rest)

CASES = (
    WithKey(
        "noisy_sgd(key)",
        lambda o, lr: o.noisy_sgd(lr, key=3),
        0.05,
        lacks={"rests": NOISE},
    ),
    WithKey(
        "noisy_sgd(schedule, eta, gamma, key)",
        lambda o, lr: o.noisy_sgd(lambda count: lr * halving(count), 0.1, 0.9, 5),
        0.05,
        2e-3,
        lacks={"rests": NOISE, "prints": FUNCTION},
    ),
)
