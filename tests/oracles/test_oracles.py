"""1,000 updates in float64 against NumPy, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import optim
from tests import gradients
from tests.oracles.adam import adam
from tests.oracles.sgd import sgd
from tests.runs import deviation

BAR = 1e-12
"""1,000 updates of about ten float64 roundings (1e-16) each, not all in one direction."""

Oracle = Callable[..., np.ndarray]


def constant(step: int) -> float:
    return 1e-2


def falling(count: Any) -> Any:
    return 1e-2 / (1.0 + count / 100.0)


def rising(count: Any) -> Any:
    return 1e-1 * (count + 1) / 1000.0


MASK = {"w": True, "rest": {"bias": False, "conv": True, "scalar": False, "wave": True}}

ROWS: dict[str, tuple[optim.GradientTransformation, Oracle, dict[str, Any]]] = {
    "sgd": (optim.sgd(1e-2), sgd, {}),
    "sgd schedule": (optim.sgd(falling), sgd, {"learning_rate": falling}),
    "sgd momentum": (optim.sgd(1e-2, 0.9), sgd, {"momentum": 0.9}),
    "sgd nesterov": (
        optim.sgd(falling, 0.9, nesterov=True),
        sgd,
        {"momentum": 0.9, "nesterov": True, "learning_rate": falling},
    ),
    "adam": (optim.adam(1e-2), adam, {}),
    "adam arguments": (
        optim.adam(falling, b1=0.8, b2=0.99, eps=1e-3, eps_root=1e-4),
        adam,
        {"b1": 0.8, "b2": 0.99, "eps": 1e-3, "eps_root": 1e-4, "learning_rate": falling},
    ),
    "adam nesterov": (optim.adam(1e-2, nesterov=True), adam, {"nesterov": True}),
    "adamw": (optim.adamw(1e-2), adam, {"weight_decay": lambda step: 1e-4}),
    "adamw mask": (
        optim.adamw(falling, weight_decay=0.1, mask=MASK),
        adam,
        {"learning_rate": falling, "weight_decay": lambda step: 0.1},
    ),
    "adamw scheduled decay, mask, nesterov": (
        optim.adamw(1e-2, weight_decay=rising, mask=MASK, nesterov=True),
        adam,
        {"weight_decay": rising, "nesterov": True},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_float64_follows_the_paper_for_1000_updates(name: str) -> None:
    tx, oracle, arguments = ROWS[name]
    judge = partial(oracle, **{"learning_rate": constant} | arguments)
    params, grads = gradients.params(), gradients.gradients(1000)

    def expected(decays: bool, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        return judge(x, g) if decays else judge(x, g, weight_decay=lambda step: 0.0)

    everywhere = jax.tree.map(lambda _: True, params)
    paths = jax.tree.map(expected, MASK if "mask" in name else everywhere, params, grads)
    with jax.enable_x64(True):
        ours = trajectory(
            tx, gradients.cast(params, jnp.float64), gradients.cast(grads, jnp.float64)
        )
        assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(ours)} == {8, 16}
        assert deviation(ours, paths) <= BAR


def trajectory(tx: Any, params: Any, grads: Any) -> Any:
    """Returns the parameters after each step."""

    @jax.jit
    def scanned(params: Any, grads: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = optim.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return scanned(params, grads)


@pytest.mark.parametrize("name", ["adam", "sgd momentum"])
def test_the_measure_sees_a_changed_hyperparameter(name: str) -> None:
    tx, oracle, arguments = ROWS[name]
    wrong = {"adam": {"b2": 0.999001}, "sgd momentum": {"momentum": 0.900001}}[name]
    params, grads = gradients.params(), gradients.gradients(50)
    judge = partial(oracle, **{"learning_rate": constant} | arguments | wrong)
    with jax.enable_x64(True):
        ours = trajectory(
            tx, gradients.cast(params, jnp.float64), gradients.cast(grads, jnp.float64)
        )
        assert deviation(ours, jax.tree.map(judge, params, grads)) > 1e3 * BAR
