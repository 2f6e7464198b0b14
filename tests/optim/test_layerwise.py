"""lamb, lars, fromage, the trust ratio, norms: what the table of laws does not say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, ParameterError
from flaxtrain.optim.fromage import Contraction, fromage_stages
from flaxtrain.optim.lamb import lamb_stages
from flaxtrain.optim.lars import lars_stages
from tests.runs import refused

X = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([0.6, -0.8])}
G = {"w": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": jnp.array([10.0, 0.0])}

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.lamb(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.lamb(0.1, b1=1.0), ArgumentError, "b1=1.0"),
    (lambda: optim.lamb(0.1, b2=-0.5), ArgumentError, "b2=-0.5"),
    (lambda: optim.lamb(0.1, eps=-1e-6), ArgumentError, "eps=-1e-06"),
    (lambda: optim.lamb(0.1, eps_root=math.inf), ArgumentError, "eps_root=inf"),
    (lambda: optim.lamb(0.1, weight_decay=-1.0), ArgumentError, "weight_decay=-1.0"),
    (lambda: optim.lamb(0.1, mask="kernels"), ArgumentTypeError, "a mask holds 'kernels'"),
    (lambda: optim.lamb(0.1, state_dtype="int8"), ArgumentTypeError, "state_dtype='int8'"),
    (lambda: lamb_stages(b1=2.0), ArgumentError, "b1=2.0"),
    (lambda: lamb_stages(weight_decay=0.1), ArgumentTypeError, "Arguments: b1, b2"),
    (lambda: optim.lars(math.nan), ArgumentError, "learning_rate=nan"),
    (lambda: optim.lars(0.1, weight_decay=-0.2), ArgumentError, "weight_decay=-0.2"),
    (lambda: optim.lars(0.1, weight_decay_mask=3), ArgumentTypeError, "a mask holds 3"),
    (lambda: optim.lars(0.1, trust_coefficient=-1.0), ArgumentError, "trust_coefficient=-1.0"),
    (lambda: optim.lars(0.1, eps="0"), ArgumentTypeError, "eps='0'"),
    (lambda: optim.lars(0.1, trust_ratio_mask="w"), ArgumentTypeError, "a mask holds 'w'"),
    (lambda: optim.lars(0.1, momentum=1.1), ArgumentError, "momentum=1.1"),
    (lambda: optim.lars(0.1, nesterov=1), ArgumentTypeError, "nesterov=1"),
    (lambda: optim.lars(0.1, state_dtype=int), ArgumentTypeError, "state_dtype"),
    (lambda: lars_stages(momentum=None), ArgumentTypeError, "momentum=None"),
    (lambda: optim.fromage("0.1"), ArgumentTypeError, "learning_rate='0.1'"),
    (lambda: optim.fromage(0.1, min_norm=-1e-6), ArgumentError, "min_norm=-1e-06"),
    (lambda: fromage_stages(-0.1), ArgumentError, "learning_rate=-0.1"),
    (lambda: optim.scale_by_trust_ratio(math.nan), ArgumentError, "min_norm=nan"),
    (
        lambda: optim.scale_by_trust_ratio(trust_coefficient=-0.5),
        ArgumentError,
        "trust_coefficient=-0.5",
    ),
    (lambda: optim.scale_by_trust_ratio(eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.lamb(0.1, epss=1e-6), ArgumentTypeError, "did you mean 'eps'"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


def updates_of(tx: Any, grads: Any = G, params: Any = X) -> Any:
    return tx.update(grads, tx.init(params), params)[0]


def test_the_trust_ratio_gives_updates_the_norm_of_their_parameters() -> None:
    updates = updates_of(optim.scale_by_trust_ratio())
    for name, norm in (("w", 5.0), ("b", 1.0)):
        # Two norms, a quotient and a product: four roundings.
        np.testing.assert_allclose(jnp.linalg.norm(updates[name]), norm, rtol=3e-7)


def test_a_zero_parameter_or_update_has_the_ratio_one() -> None:
    zeros = jax.tree.map(jnp.zeros_like, X)
    tx = optim.scale_by_trust_ratio()
    jax.tree.map(np.testing.assert_array_equal, updates_of(tx, G, zeros), G)
    jax.tree.map(np.testing.assert_array_equal, updates_of(tx, zeros, X), zeros)
    floored = updates_of(optim.scale_by_trust_ratio(min_norm=0.5), G, zeros)
    np.testing.assert_allclose(jnp.linalg.norm(floored["b"]), 0.5, rtol=3e-7)


def test_each_step_of_lamb_is_the_learning_rate_times_the_norm_of_the_array() -> None:
    updates = updates_of(optim.lamb(0.01, weight_decay=0.1))
    for name, norm in (("w", 5.0), ("b", 1.0)):
        np.testing.assert_allclose(jnp.linalg.norm(updates[name]), 0.01 * norm, rtol=1e-6)


def test_the_momentum_of_lars_remembers_the_learning_rate_of_its_time() -> None:
    """The learning rate falls to zero, and what was gathered goes on."""
    tx = optim.lars(lambda count: jnp.where(count == 0, 1.0, 0.0), momentum=0.5)
    state = tx.init(X)
    first, state = tx.update(G, state, X)
    second, state = tx.update(G, state, X)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 0.5 * b), second, first)


def test_arrays_outside_the_trust_ratio_mask_get_plain_momentum() -> None:
    updates = updates_of(optim.lars(0.1, trust_ratio_mask={"w": True, "b": False}))
    np.testing.assert_allclose(updates["b"], -0.1 * G["b"], rtol=1e-6)
    scaled = updates_of(optim.lars(0.1))
    np.testing.assert_array_equal(updates["w"], scaled["w"])
    assert float(jnp.abs(scaled["b"]).max()) < 1e-3


def test_fromage_at_a_right_angle_keeps_the_norm() -> None:
    x, g = jnp.array([3.0, 4.0]), jnp.array([40.0, -30.0])
    for learning_rate in (0.01, 0.5, lambda count: 0.5):
        new = x + updates_of(optim.fromage(learning_rate), g, x)
        # A handful of roundings.
        np.testing.assert_allclose(jnp.linalg.norm(new), 5.0, rtol=5e-7)


def through(tx: Any, params: Any, grads: Any) -> Any:
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    return params


def falling(count: Any) -> Any:
    return 0.1 / (1.0 + count)


def test_the_contraction_of_a_small_learning_rate_is_exact() -> None:
    """1 / sqrt(1 + 1e-6) - 1 is -5e-7; in float32 this difference is off by a fifth of it."""
    rule = Contraction(lambda count: jnp.float32(1e-3))
    x = jnp.ones(1)
    update, _ = rule.update(0 * x, rule.init(x), x, rule.scalars(jnp.int32(1)))
    np.testing.assert_allclose(update, 1 / math.sqrt(1 + 1e-6) - 1, rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda d: optim.lamb(0.1, state_dtype=d), lambda d: optim.lars(0.1, state_dtype=d)]
)
def test_state_dtype_computes_norms_in_float32(make: Any) -> None:
    """300 ones in bfloat16 have the norm 17.32, in bfloat16 17.25."""
    x = jnp.full(300, 1.0, jnp.bfloat16)
    updates = updates_of(make("float32"), x, x)
    truth = updates_of(make(None), x.astype(jnp.float32), x.astype(jnp.float32))
    assert updates.dtype == jnp.float32
    np.testing.assert_allclose(updates, truth, rtol=1e-6)


@pytest.mark.parametrize("norm", [optim.safe_norm, optim.safe_root_mean_squares])
def test_a_norm_has_the_gradient_zero_at_zero_and_its_own_elsewhere(norm: Any) -> None:
    for floor in (0.0, 1e-3):
        assert norm(jnp.zeros(3), floor) == floor
        np.testing.assert_array_equal(jax.grad(norm)(jnp.zeros(3), floor), jnp.zeros(3))
    x = jnp.array([3.0, 4.0])
    plain = jax.grad(
        lambda x: jnp.linalg.norm(x) / (x.size**0.5 if "root" in repr(norm) else 1)
    )
    np.testing.assert_allclose(jax.grad(norm)(x, 1.0), plain(x), rtol=2e-7)
    assert jnp.isnan(norm(jnp.array([jnp.nan, 1.0]), 1.0))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ord": 1, "axis": 0},
        {"ord": jnp.inf, "axis": 1, "keepdims": True},
        {"axis": (0, 1)},
        {"ord": "fro", "keepdims": True},
    ],
    ids=str,
)
def test_safe_norm_is_optax_s_for_every_order_and_axis(arguments: dict[str, Any]) -> None:
    x = jnp.array([[3.0, 0.0, -1.0], [4.0, 0.0, 2.0]])
    ours = optim.safe_norm(x, 2.5, **arguments)
    theirs = optax.safe_norm(x, 2.5, **arguments)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)


def test_missing_parameters_are_named() -> None:
    for tx in (optim.fromage(0.1), optim.scale_by_trust_ratio()):
        with pytest.raises(ParameterError, match="TrustRatio needs the parameters"):
            tx.update(G, tx.init(X))
