"""Laws about numbers: convergence, and what a zero gradient does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.optim import apply_updates
from tests.cases import CASES, Case

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def target(case: Case) -> Any:
    z = 0.5 + 0.5j if case.has_complex else 0.5
    return {"w": jnp.array([1.0, -1.0, 0.5]), "rest": {"z": jnp.array([z])}}


def descend(
    case: Case, rate: float, loss: Callable[[Any], Any], params: Any, steps: int
) -> Any:
    tx = case.ours(rate)

    @jax.jit
    def final(params: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            # jax's gradient of a complex argument is the conjugate of the steepest ascent.
            grads = jax.tree.map(jnp.conj, grads)
            extra = {"value": value} if case.takes_value else {}
            updates, state = tx.update(grads, state, params, **extra)
            return (apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[0][0]

    return final(params)


def parabola(target: Any) -> Callable[[Any], Any]:
    def loss(params: Any) -> Any:
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target))
        return sum(jnp.sum(jnp.abs(x - y) ** 2) for x, y in pairs)

    return loss


def rosenbrock(params: Any) -> Any:
    x, y = params["w"], params["rest"]["y"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@each_case
def test_a_parabola_over_real_and_complex_parameters_converges(case: Case) -> None:
    if lack := case.lacks.get("parabola"):
        lack.proof(case)
        return
    loss = parabola(target(case))
    # From a loss of 2.75. Weight decay moves the minimum, and constant steps of Adam orbit it.
    start = jax.tree.map(jnp.zeros_like, target(case))
    assert loss(descend(case, case.learning_rate, loss, start, 1000)) < 1e-3


@each_case
def test_the_rosenbrock_valley_is_followed_to_its_end(case: Case) -> None:
    if lack := case.lacks.get("rosenbrock"):
        lack.proof(case)
        return
    start = {"w": jnp.array(-1.0), "rest": {"y": jnp.array(1.0)}}
    end = descend(case, case.rosenbrock, rosenbrock, start, 20_000)
    # The valley is flat along its floor: 15% of the distance is left to weight decay, decaying
    # learning rates and low precision.
    np.testing.assert_allclose([end["w"], end["rest"]["y"]], [1.0, 1.0], atol=0.15)


@each_case
def test_a_zero_gradient_moves_nothing_but_what_decays(case: Case) -> None:
    if lack := case.lacks.get("rests"):
        lack.proof(case)
        return
    tx = case.ours(0.5)
    params = {"w": jnp.array([[2.0, -4.0]]), "rest": {"b": jnp.array([3.0])}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params, **case.extra(zeros))
    # One rounding for the decay, one for the learning rate.
    expected = -0.5 * case.weight_decay * params["w"]
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-7)
    rest = -0.5 * case.weight_decay * 3.0 if case.decays_rest else 0.0
    np.testing.assert_allclose(updates["rest"]["b"], [rest], rtol=2e-7)


@each_case
def test_nan_in_a_gradient_reaches_the_update(case: Case) -> None:
    if lack := case.lacks.get("passes_nan"):
        lack.proof(case)
        return
    tx = case.ours()
    params = {"w": jnp.ones((2, 2)), "rest": {"b": jnp.ones(2)}}
    grads = {"w": jnp.full((2, 2), jnp.nan), "rest": {"b": jnp.ones(2)}}
    updates, _ = tx.update(grads, tx.init(params), params, **case.extra(grads))
    assert bool(jnp.all(jnp.isnan(updates["w"])))
