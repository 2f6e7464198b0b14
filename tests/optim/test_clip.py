"""clip, clip_by_block_rms, adaptive and per-example clipping: what the laws do not say."""

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
from tests.runs import refused

BATCH = {"w": jnp.ones((2, 3))}

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.clip(-1.0), ArgumentError, "max_delta=-1.0 is negative"),
    (lambda: optim.clip(math.nan), ArgumentError, "max_delta=nan"),
    (lambda: optim.clip("1"), ArgumentTypeError, "max_delta='1'"),
    (lambda: optim.clip(True), ArgumentTypeError, "max_delta=True"),
    (lambda: optim.clip([1.0]), ArgumentTypeError, "max_delta=[1.0]"),
    (lambda: optim.clip(1j), ArgumentTypeError, "max_delta=1j"),
    (lambda: optim.clip(1.0, min_delta=2.0), ArgumentError, "below min_delta=2.0"),
    (lambda: optim.clip(1.0, min_delta=math.nan), ArgumentError, "min_delta=nan"),
    (lambda: optim.clip(1.0, min_delta="0"), ArgumentTypeError, "min_delta='0'"),
    (lambda: optim.clip(max_delt=1.0), ArgumentTypeError, "did you mean 'max_delta'"),
    (lambda: optim.clip_by_block_rms(0.0), ArgumentError, "threshold=0.0"),
    (lambda: optim.clip_by_block_rms(None), ArgumentTypeError, "threshold=None"),
    (lambda: optim.adaptive_grad_clip(0.0), ArgumentError, "clipping=0.0"),
    (lambda: optim.adaptive_grad_clip("1"), ArgumentTypeError, "clipping='1'"),
    (lambda: optim.adaptive_grad_clip(0.1, eps=-1.0), ArgumentError, "eps=-1.0"),
    (lambda: optim.adaptive_grad_clip(0.1, axis=0.5), ArgumentTypeError, "axis=0.5"),
    (lambda: optim.adaptive_grad_clip(0.1, axis=()), ArgumentError, "axis=()"),
    (lambda: optim.adaptive_grad_clip(0.1, axis=(1, 1)), ArgumentError, "axis=(1, 1)"),
    (lambda: optim.unitwise_norm(jnp.ones(2), 1), ParameterError, "shape (2,) has no axis 1"),
    (
        lambda: optim.unitwise_clip(jnp.ones(2), jnp.ones(1), jnp.ones(2)),
        ParameterError,
        "[(2,), (1,), (2,)]",
    ),
    (
        lambda: optim.per_example_global_norm_clip(BATCH, -1.0),
        ArgumentError,
        "l2_norm_clip=-1.0",
    ),
    (
        lambda: optim.per_example_global_norm_clip(BATCH, "1"),
        ArgumentTypeError,
        "l2_norm_clip='1'",
    ),
    (
        lambda: optim.per_example_global_norm_clip({"a": jnp.ones(3), **BATCH}, 1.0),
        ParameterError,
        "'a': (3,)",
    ),
    (
        lambda: optim.per_example_global_norm_clip(jnp.ones(()), 1.0),
        ParameterError,
        "leading axis",
    ),
    (
        lambda: optim.per_example_layer_norm_clip(BATCH, math.nan),
        ArgumentError,
        "global_l2_norm_clip=nan",
    ),
    (
        lambda: optim.per_example_layer_norm_clip(BATCH, 1.0, uniform=1),
        ArgumentTypeError,
        "uniform=1",
    ),
    (lambda: optim.scale(), ArgumentTypeError, "exactly one is needed"),
    (lambda: optim.scale(0.1, learning_rate=0.1), ArgumentTypeError, "exactly one is needed"),
    (lambda: optim.scale(learning_rate=math.inf), ArgumentError, "learning_rate=inf"),
    (lambda: optim.scale(learning_rate="1"), ArgumentTypeError, "learning_rate='1'"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


def updates_of(tx: Any, grads: Any, params: Any = None) -> Any:
    return tx.update(grads, tx.init(grads), params)[0]


def test_both_bounds_of_clip_can_be_named() -> None:
    grads = jnp.array([-5.0, -0.5, 0.5, 5.0, jnp.nan])
    for tx, expected in (
        (optim.clip(1.0), [-1.0, -0.5, 0.5, 1.0]),
        (optim.clip(min_delta=-2.0, max_delta=1.0), [-2.0, -0.5, 0.5, 1.0]),
        (optim.clip(math.inf, min_delta=0.0), [0.0, 0.0, 0.5, 5.0]),
        (optim.clip(-1.0, min_delta=-2.0), [-2.0, -1.0, -1.0, -1.0]),
        (optim.clip(jnp.array([1.0, 0.1, 0.1, 9.0, 1.0])), [-1.0, -0.1, 0.1, 5.0]),
    ):
        updates = updates_of(tx, grads)
        np.testing.assert_array_equal(updates[:4], jnp.array(expected))
        assert jnp.isnan(updates[4])


def test_clip_shortens_complex_entries_and_keeps_their_direction() -> None:
    z = jnp.array([3.0 + 4.0j, 0.1j, 0.0])
    # Magnitude, quotient and product are rounded.
    np.testing.assert_allclose(updates_of(optim.clip(1.0), z), [0.6 + 0.8j, 0.1j, 0], rtol=3e-7)
    with pytest.raises(ParameterError, match="no order"):
        updates_of(optim.clip(1.0, min_delta=0.0), z)


def test_bounds_may_be_tracers() -> None:
    def clipped(bound: Any) -> Any:
        return updates_of(optim.clip(bound, min_delta=-2 * bound), jnp.array([-9.0, 9.0]))

    together = jax.vmap(clipped)(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(together, [[-2.0, 1.0], [-4.0, 2.0]])


def test_a_factor_called_learning_rate_keeps_its_sign() -> None:
    assert updates_of(optim.scale(learning_rate=0.5), 2.0) == 1.0
    assert updates_of(optim.scale(learning_rate=-0.5), 2.0) == -1.0
    assert repr(optim.scale(learning_rate=0.5)) == "scale(learning_rate=0.5)"


def test_a_block_of_small_rms_keeps_every_bit() -> None:
    grads = {"small": jnp.array([0.1, -0.3]), "large": jnp.array([1.0, 7.0])}
    updates = updates_of(optim.clip_by_block_rms(0.5), grads)
    np.testing.assert_array_equal(updates["small"], grads["small"])
    np.testing.assert_allclose(updates["large"], [0.1, 0.7], rtol=3e-7)


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (5,),
        (5, 1),
        (1, 1, 4),
        (3, 4),
        (2, 3, 4),
        (2, 2, 3, 4),
        (2, 1, 2, 3, 2),
        (3, 3, 1, 1),
    ],
    ids=str,
)
def test_units_by_rank_are_optax_s(shape: tuple[int, ...]) -> None:
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    ours = optim.unitwise_norm(x)
    np.testing.assert_array_equal(ours, optax.transforms.unitwise_norm(x))
    assert ours.shape == shape


def test_units_of_rank_six_are_entries_of_the_last_axis() -> None:
    """Where Optax raises. It is what ranks 4 and 5 do."""
    x = jnp.ones((2, 1, 2, 1, 2, 3))
    np.testing.assert_allclose(optim.unitwise_norm(x), np.sqrt(8.0) * x, rtol=1e-6)
    with pytest.raises(ValueError, match="Expected parameter with shape"):
        optax.transforms.unitwise_norm(x)


def test_a_unit_s_gradient_is_at_most_a_share_of_its_parameter() -> None:
    params = {"w": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "b": jnp.array([1.0])}
    grads = {"w": jnp.array([[6.0, 1.0], [8.0, 0.0]]), "b": jnp.array([0.05])}
    updates = updates_of(optim.adaptive_grad_clip(0.1, eps=0.2), grads, params)
    # The first column is 10 beside 5; the second is 1 beside 0, for which eps stands.
    np.testing.assert_allclose(updates["w"], [[0.3, 0.02], [0.4, 0.0]], rtol=3e-7)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    rows = updates_of(optim.adaptive_grad_clip(0.1, axis=-1), grads["w"], params["w"])
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), [0.3, 0.4], rtol=3e-7)


def test_an_array_without_the_axis_is_named_by_its_shape() -> None:
    with pytest.raises(ParameterError, match=r"shape \(2,\) has no axis \(0, 1\)"):
        updates_of(optim.adaptive_grad_clip(0.1, axis=(0, 1)), jnp.ones(2), jnp.ones(2))


EXAMPLES = {
    "w": jnp.array([[0.0, 3.0], [6.0, 0.0], [0.0, 0.0]]),
    "b": jnp.array([4.0, 8.0, 0.0]),
    "z": jnp.array([[0j], [0j], [0j]]),
}


def test_each_example_counts_with_a_bounded_norm() -> None:
    total, clipped = optim.per_example_global_norm_clip(EXAMPLES, 5.0)
    np.testing.assert_allclose(total["w"], [3.0, 3.0], rtol=3e-7)
    assert total["b"] == 8.0 and clipped == 1 and clipped.dtype == jnp.int32
    for bound, count in ((math.inf, 0), (0.0, 2), (20.0, 0)):
        total, clipped = optim.per_example_global_norm_clip(EXAMPLES, bound)
        assert clipped == count
        assert not any(bool(jnp.any(jnp.isnan(leaf))) for leaf in jax.tree.leaves(total))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("bound", [0.0, 2.5, 7.0, math.inf])
def test_clipping_of_layers_is_optax_s(uniform: bool, bound: float) -> None:
    ours = optim.per_example_layer_norm_clip(EXAMPLES, bound, uniform)
    theirs = optax.per_example_layer_norm_clip(EXAMPLES, bound, uniform)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-7), ours, theirs)


def test_no_gradients_at_all_have_no_examples_to_clip() -> None:
    """Optax looks for the first array and fails."""
    assert optim.per_example_global_norm_clip({}, 1.0) == ({}, 0)
    assert optim.per_example_layer_norm_clip({}, 1.0, uniform=False) == ({}, {})
    with pytest.raises(IndexError):
        optax.per_example_global_norm_clip({}, 1.0)


@pytest.mark.parametrize(
    "tx",
    [
        optim.clip_by_global_norm(math.inf),
        optim.clip_by_block_rms(math.inf),
        optim.adaptive_grad_clip(math.inf),
    ],
    ids=repr,
)
def test_an_infinite_bound_is_none(tx: optim.GradientTransformation) -> None:
    params = {"w": jnp.array([1.0, -2.0])}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].tolist() == [1.0, -2.0]


def test_integer_gradients_are_scaled_as_numbers_not_to_zero() -> None:
    tx = optim.clip_by_global_norm(2.5)
    updates, _ = tx.update(jnp.array([3, 4]), tx.init(None))
    assert updates.tolist() == [1.5, 2.0]
