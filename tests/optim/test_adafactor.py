"""adafactor and its parts: what the table of laws does not say."""

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
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.optim.adafactor import adafactor_stages
from tests import gradients
from tests.runs import at, deviation, refused, run

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.adafactor(-1.0), ArgumentError, "learning_rate=-1.0"),
    (
        lambda: optim.adafactor(min_dim_size_to_factor=-1),
        ArgumentError,
        "min_dim_size_to_factor=-1",
    ),
    (
        lambda: optim.adafactor(min_dim_size_to_factor=2.5),
        ArgumentTypeError,
        "min_dim_size_to_factor=2.5",
    ),
    (lambda: optim.adafactor(decay_rate=-0.8), ArgumentError, "decay_rate=-0.8"),
    (lambda: optim.adafactor(decay_offset=-1), ArgumentError, "decay_offset=-1"),
    (lambda: optim.adafactor(decay_offset=0.5), ArgumentTypeError, "decay_offset=0.5"),
    (
        lambda: optim.adafactor(multiply_by_parameter_scale=1.0),
        ArgumentTypeError,
        "multiply_by_parameter_scale=1.0",
    ),
    (lambda: optim.adafactor(clipping_threshold=0), ArgumentError, "clipping_threshold=0"),
    (lambda: optim.adafactor(momentum=1.0), ArgumentError, "momentum=1.0"),
    (lambda: optim.adafactor(dtype_momentum=int), ArgumentTypeError, "dtype_momentum"),
    (lambda: optim.adafactor(weight_decay_rate=-0.1), ArgumentError, "weight_decay_rate=-0.1"),
    (lambda: optim.adafactor(eps=0.0), ArgumentError, "eps=0.0"),
    (lambda: optim.adafactor(factored="yes"), ArgumentTypeError, "factored='yes'"),
    (
        lambda: optim.adafactor(weight_decay_rate=0.1, weight_decay_mask=2),
        ArgumentTypeError,
        "a mask holds 2",
    ),
    (lambda: optim.adafactor(state_dtype="int8"), ArgumentTypeError, "state_dtype='int8'"),
    (
        lambda: optim.adafactor(dtype_momentum="bfloat16", state_dtype="float16"),
        ArgumentError,
        "both say how slots are stored",
    ),
    (lambda: adafactor_stages(weight_decay=0.1), ArgumentTypeError, "Arguments:"),
    (lambda: adafactor_stages(momentum=-0.1), ArgumentError, "momentum=-0.1"),
    (lambda: optim.scale_by_factored_rms(None), ArgumentTypeError, "factored=None"),
    (lambda: optim.scale_by_factored_rms(decay_rate=math.nan), ArgumentError, "decay_rate=nan"),
    (lambda: optim.scale_by_factored_rms(step_offset=-2), ArgumentError, "step_offset=-2"),
    (
        lambda: optim.scale_by_factored_rms(min_dim_size_to_factor="2"),
        ArgumentTypeError,
        "min_dim_size_to_factor='2'",
    ),
    (lambda: optim.scale_by_factored_rms(epsilon=0.0), ArgumentError, "epsilon=0.0"),
    (
        lambda: optim.scale_by_factored_rms(decay_rate_fn=0.9),
        ArgumentTypeError,
        "decay_rate_fn=0.9",
    ),
    (lambda: optim.scale_by_param_block_norm(-1.0), ArgumentError, "min_scale=-1.0"),
    (lambda: optim.scale_by_param_block_rms("1"), ArgumentTypeError, "min_scale='1'"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


def real(steps: int) -> tuple[Any, Any]:
    return (
        gradients.cast(gradients.params(complex_leaf=False), jnp.float32),
        gradients.cast(gradients.gradients(steps, complex_leaf=False), jnp.float32),
    )


def test_an_offset_on_a_fresh_state_is_a_second_phase_and_not_nan() -> None:
    """Up to the offset the numbers are those without it; from it on, those of a new start."""
    params, grads = real(8)
    direction = optim.scale_by_factored_rms(min_dim_size_to_factor=4, step_offset=5)
    plain = optim.scale_by_factored_rms(min_dim_size_to_factor=4)
    assert np.isnan(
        run(optax.scale_by_factored_rms(step_offset=5), params, grads)[2]["w"]
    ).any()
    found, expected = (run(tx, params, grads)[2] for tx in (direction, plain))
    begun = run(plain, params, jax.tree.map(lambda g: g[5:], grads))[2]
    for step in range(5):
        assert deviation(at(found, step), at(expected, step)) == 0.0
    for step in range(3):
        # The state of the first phase is forgotten at once: the decay is 0.
        assert deviation(at(found, 5 + step), at(begun, step)) < 1e-6


def test_a_restored_count_with_an_offset_gives_optax_s_numbers() -> None:
    params, grads = real(1)
    results = []
    for o in (optim, optax):
        tx = o.adafactor(0.1, min_dim_size_to_factor=4, decay_offset=100)
        state = list(tx.init(params))
        filled = jax.tree.map(jnp.ones_like, state[0])
        state[0] = filled._replace(count=jnp.int32(107))
        results.append(tx.update(at(grads, 0), tuple(state), params)[0])
    assert deviation(*results) < 1e-6


def test_only_the_two_longest_axes_are_factored_and_only_if_long_enough() -> None:
    shapes = {"a": (256, 130, 200), "b": (127, 300), "c": (128, 128), "d": (500,), "e": ()}
    params = {name: jax.ShapeDtypeStruct(s, jnp.bfloat16) for name, s in shapes.items()}
    ours, theirs = (
        jax.eval_shape(o.scale_by_factored_rms().init, params) for o in (optim, optax)
    )
    assert ours.v_row["a"].shape == (130, 200) and ours.v_col["a"].shape == (256, 130)
    assert ours.v["b"].shape == (127, 300) and ours.v["c"].shape == (1,)
    for field in ("v_row", "v_col", "v"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_the_factored_moment_of_a_rank_one_gradient_is_exact() -> None:
    """Then |g|^2 is the product of its means, and every entry of the direction is a sign."""
    g = jnp.outer(jnp.array([1.0, -2.0, 0.5]), jnp.array([3.0, 1.0, -0.1, 10.0]))
    tx = optim.scale_by_factored_rms(min_dim_size_to_factor=2)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, jnp.sign(g), rtol=1e-6)


def test_without_scale_and_decay_no_parameters_are_needed() -> None:
    """Optax asks for them for their dtype, which the state has too."""
    g = jnp.array([4.0, -0.1])
    tx = optim.adafactor(0.5, multiply_by_parameter_scale=False)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], [-0.5, 0.5], rtol=1e-6)
    judge = optax.adafactor(0.5, multiply_by_parameter_scale=False)
    with pytest.raises(ValueError, match="params"):
        judge.update(g, judge.init(g), None)


def test_parameters_at_zero_start_with_a_thousandth_of_the_learning_rate() -> None:
    zeros = jnp.zeros(2)
    tx = optim.adafactor(0.1)
    updates, _ = tx.update(jnp.ones(2), tx.init(zeros), zeros)
    np.testing.assert_allclose(updates, -1e-4 * np.ones(2), rtol=1e-6)


def test_without_a_learning_rate_updates_descend_all_the_same() -> None:
    x = jnp.array([1.0, -1.0])
    tx = optim.adafactor()
    assert tx.update(x, tx.init(x), x)[0].tolist() == pytest.approx([-1.0, 1.0], rel=1e-6)


def test_weight_decay_is_not_multiplied_by_the_learning_rate() -> None:
    x = jnp.array([2.0, -4.0])
    tx = optim.adafactor(0.01, weight_decay_rate=0.1)
    updates, _ = tx.update(jnp.zeros(2), tx.init(x), x)
    np.testing.assert_allclose(updates, -0.1 * x, rtol=2e-7)


def test_state_dtype_stores_moments_and_average_in_it() -> None:
    params = {"w": jnp.ones((4, 4), jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    tx = optim.adafactor(0.1, 4, momentum=0.9, state_dtype="float16")
    updates, state = tx.update(params, tx.init(params), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"float32"}
    floats = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32}
    assert floats == {"float16"}
