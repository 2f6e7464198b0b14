"""Rows of methods that give each array a step in proportion to its norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases.base import (
    FUNCTION,
    MATRICES,
    PREFIX_MASK,
    Case,
    Lack,
    halving,
    matrices,
    per_array,
)
from tests.cases.partition import by_key
from tests.oracles.changed import descent, trusted
from tests.oracles.layerwise import fromage, lamb, lars


def _an_entry_moves_by_a_share_of_itself(case: Case) -> None:
    """However large the gradient: so -1, where the walk through the valley starts, comes near
    to 0 but not beyond. With optax too."""
    for x in (jnp.array(-1.0), jnp.array(-1e-3)):
        tx = case.judge(1.0)
        shares = [tx.update(g * x, tx.init(x), x)[0] / x for g in (1.0, 1e6)]
        assert -1 <= shares[0] < 0
        # LAMB's eps is 1e-6 beside a gradient of 1e-3.
        np.testing.assert_allclose(*shares, rtol=2e-3)


def _optax_shrinks_too(case: Case) -> None:
    """With a zero gradient, x becomes x / sqrt(1 + learning_rate^2)."""
    tx, x = case.judge(0.5), jnp.array([2.0, -4.0])
    updates, _ = tx.update(jnp.zeros(2), tx.init(x), x)
    factors = 1 + updates / x
    assert factors[0] == factors[1] and 0 < factors[0] < 0.9


def _optax_scales_the_decay_too(case: Case) -> None:
    """With a zero gradient the decay is all of the update, and gets the parameter's norm."""
    tx, params = case.judge(1.0), {"w": jnp.array([[2.0, -4.0]]), "rest": {}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    share = jnp.linalg.norm(updates["w"]) / jnp.linalg.norm(params["w"])
    assert share > 5 * case.weight_decay


def _optax_differs_from_itself_without_jit(case: Case) -> None:
    """At rest, the update is the shrinking alone: 1/s - 1, from two numbers near 1."""
    one, gaps = {"w": jnp.ones(1), "rest": {}}, []
    zero, tx = jax.tree.map(jnp.zeros_like, one), case.judge()
    state, compiled = tx.init(one), jax.jit(tx.update)
    for _ in range(20):
        eager = tx.update(zero, state, one)[0]["w"]
        updates, state = compiled(zero, state, one)
        gaps.append(float(jnp.max(jnp.abs(eager / updates["w"] - 1))))
    assert max(gaps) > 1e-5


CANCELS = Lack(
    "ours shrinks without jit as with it; optax's digits are lost in another way",
    _optax_differs_from_itself_without_jit,
)
RELATIVE = Lack(
    "a single entry moves by a share of itself", _an_entry_moves_by_a_share_of_itself
)
SHRINKS = Lack("the norm is bounded by shrinking parameters", _optax_shrinks_too)
SCALED = Lack("the trust ratio scales the decay", _optax_scales_the_decay_too)

CASES = (
    Case(
        "lamb",
        lambda o, lr: o.lamb(lr),
        0.01,
        needs_params=True,
        oracle=per_array(lamb),
        lacks={"rosenbrock": RELATIVE},
    ),
    Case(
        "lamb(schedule, weight_decay, mask)",
        lambda o, lr: o.lamb(
            lambda count: lr * halving(count), b2=0.99, weight_decay=1e-3, mask=matrices
        ),
        0.01,
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(
            lamb,
            b2=0.99,
            decayed=MATRICES,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3,
        ),
        lacks={"prints": FUNCTION, "rosenbrock": RELATIVE, "rests": SCALED},
    ),
    Case(
        "lars",
        lambda o, lr: o.lars(lr),
        0.05,
        needs_params=True,
        oracle=per_array(lars),
        lacks={"rosenbrock": RELATIVE},
    ),
    Case(
        "lars(schedule, nesterov, trust_coefficient)",
        lambda o, lr: o.lars(
            lambda count: lr * halving(count),
            weight_decay=lambda count: 1e-3 * halving(count),
            trust_coefficient=0.01,
            momentum=0.8,
            nesterov=True,
        ),
        0.05,
        weight_decay=1e-3,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(
            lars,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3 * halving(step),
            trust_coefficient=0.01,
            momentum=0.8,
            nesterov=True,
        ),
        lacks={"prints": FUNCTION, "rosenbrock": RELATIVE, "rests": SCALED},
    ),
    Case(
        "lars(masks)",
        lambda o, lr: o.lars(
            lr, 1e-4, PREFIX_MASK, 1.0, 1e-8, {"w": False, "rest": True}, momentum=0.5
        ),
        0.05,
        5e-4,
        weight_decay=1e-4,
        needs_params=True,
        oracle=by_key(
            per_array(lars, weight_decay=lambda step: 1e-4, trusted=False, momentum=0.5),
            per_array(lars, trust_coefficient=1.0, eps=1e-8, momentum=0.5),
        ),
    ),
    Case(
        "fromage",
        lambda o, lr: o.fromage(lr),
        0.02,
        needs_params=True,
        oracle=per_array(fromage),
        lacks={"rests": SHRINKS, "rosenbrock": RELATIVE},
    ),
    Case(
        "fromage(schedule)",
        lambda o, lr: o.fromage(lambda count: 10 * lr * halving(count), min_norm=0.1),
        2e-3,
        4e-4,
        needs_params=True,
        oracle=per_array(fromage, min_norm=0.1, learning_rate=lambda step: 0.1 * halving(step)),
        lacks={"rests": SHRINKS, "prints": FUNCTION, "eager": CANCELS},
    ),
    Case(
        "chain(scale_by_trust_ratio, sgd)",
        lambda o, lr: o.chain(o.scale_by_trust_ratio(1e-3, 0.5, 1e-2), o.sgd(lr, 0.5)),
        0.02,
        2e-3,
        needs_params=True,
        oracle=per_array(descent, change=trusted(1e-3, 0.5, 1e-2), momentum=0.5),
    ),
)
