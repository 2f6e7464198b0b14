"""Small numerics against optax, and beyond it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.optim import multi_normal, nnls, safe_int32_increment, scale_gradient

RANDOM = np.random.default_rng(0)
X = {"a": jnp.asarray(RANDOM.normal(size=(3, 2)), jnp.float32), "b": jnp.float32(2.0)}


def loss(scaled: Callable[..., Any], scale: Any) -> Callable[[Any], Any]:
    def value(x: Any) -> Any:
        y = scaled(x, scale)
        return jnp.sum(jnp.sin(y["a"])) * y["b"] ** 3

    return value


@pytest.mark.parametrize("scale", [1.0, 0.0, -1.0, 0.3, 1e3, 2])
def test_a_scaled_gradient_equals_that_of_optax(scale: Any) -> None:
    ours, theirs = (
        jax.jit(jax.value_and_grad(loss(scaled, scale)))(X)
        for scaled in (scale_gradient, optax.scale_gradient)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scale_may_be_a_tracer() -> None:
    def slope(scale: Any) -> Any:
        return jax.grad(loss(scale_gradient, scale))(X)["b"]

    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda scale: jax.grad(loss(optax.scale_gradient, scale))(X))(2.0)
    scales = jnp.array([0.0, 1.0, -2.0])
    found = jax.jit(jax.vmap(slope))(scales)
    np.testing.assert_array_equal(jax.jit(lambda: slope(jnp.float32(-2.0)))(), found[2])
    np.testing.assert_allclose(found, scales * slope(1.0), rtol=1e-6)


def test_the_dtype_of_a_gradient_stays_that_of_its_input() -> None:
    def value(x: Any) -> Any:
        y = scale_gradient(x, jnp.float32(3.0))
        return (y["w"] * y["w"]).sum().astype(jnp.float32)

    grad = jax.grad(value)({"w": jnp.ones(2, jnp.bfloat16)})["w"]
    assert grad.dtype == jnp.bfloat16 and float(grad[0]) == 6.0


def test_integers_beside_the_inputs_are_left_alone() -> None:
    def value(x: Any) -> Any:
        y = scale_gradient({"w": x, "n": jnp.arange(2), "none": None}, 2.0)
        return (y["w"] * y["n"]).sum()

    np.testing.assert_array_equal(jax.grad(value)(jnp.ones(2)), [0.0, 2.0])


def test_a_factor_may_have_the_shape_of_an_input_but_not_enlarge_it() -> None:
    def value(x: Any, scale: Any) -> Any:
        y = scale_gradient({"in": {"w": x}, "n": jnp.arange(5)}, scale)
        return y["in"]["w"].sum()

    scale = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_array_equal(jax.grad(value)(jnp.ones(3), scale), scale)
    text = r"scale of shape \(3,\) does not broadcast to 'in/w' of shape "
    for x in (jnp.ones(2), jnp.ones(()), jnp.ones((3, 1)), 1.0):
        for call in (jax.grad(value), jax.jit(jax.grad(value))):
            with pytest.raises(ArgumentError, match=text):
                call(x, scale)
    with pytest.raises(ArgumentError, match=text):  # also where nothing would be multiplied
        value(1.0, jnp.ones(3))


def test_the_second_derivative_is_scaled_twice() -> None:
    def value(x: Any) -> Any:
        return scale_gradient(x, 0.5) ** 3

    theirs = jax.grad(jax.grad(lambda x: optax.scale_gradient(x, 0.5) ** 3))(2.0)
    # 0.5 * 3 x^2, and its derivative seen through the scaled input: 0.5 * 0.5 * 6 x.
    assert float(jax.grad(jax.grad(value))(2.0)) == float(theirs) == 3.0


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_the_normal_distribution_equals_that_of_optax(shape: tuple[int, ...]) -> None:
    loc, log_scale = (
        jnp.asarray(RANDOM.normal(size=(2, 3))),
        jnp.asarray(RANDOM.normal(size=(2, 3))),
    )
    ours, theirs = multi_normal(loc, log_scale), optax.multi_normal(loc, log_scale)
    key = jax.random.key(1)
    draws = ours.sample(shape, key)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_array_equal(draws, theirs.sample(shape, key))
        wanted = theirs.log_prob(draws)
    np.testing.assert_allclose(ours.log_prob(draws), wanted, rtol=1e-6)
    np.testing.assert_array_equal(ours.log_scale, theirs.log_scale)
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_of_a_distribution_broadcast() -> None:
    normal = multi_normal(jnp.zeros((2, 3)), 0.0)
    assert normal.sample((5,), jax.random.key(0)).shape == (5, 2, 3)
    assert float(normal.log_prob(jnp.zeros((2, 3)))) == pytest.approx(-3 * np.log(2 * np.pi))


@pytest.mark.parametrize("columns", [(), (3,)])
@pytest.mark.parametrize("bound", [None, 50.0])
def test_least_squares_equal_those_of_optax(
    columns: tuple[int, ...], bound: float | None
) -> None:
    A = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)
    b = jnp.asarray(RANDOM.normal(size=(6, *columns)), jnp.float32)
    ours, theirs = nnls(A, b, 200, L=bound), optax.nnls(A, b, 200, L=bound)
    # The bound is formed by another sum; the iteration contracts.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_solution_fulfils_the_conditions_of_an_optimum() -> None:
    with jax.enable_x64(True):
        A, b = jnp.asarray(RANDOM.normal(size=(8, 5))), jnp.asarray(RANDOM.normal(size=8))
        x = nnls(A, b, 20_000)
        x, slope = np.asarray(x), np.asarray(A.T @ (A @ x - b))
    assert np.all(x >= 0)
    # Where an entry is positive its slope is 0, and where it is 0 the slope is not negative.
    assert np.all(np.abs(slope[x > 0]) < 1e-8) and np.all(slope[x == 0] > -1e-8)


def test_least_squares_of_nothing() -> None:
    assert np.array_equal(nnls(jnp.zeros((3, 2)), jnp.ones(3), 5), np.zeros(2))
    assert nnls(jnp.zeros((3, 0)), jnp.ones(3), 5).shape == (0,)


def test_the_older_name_of_the_counter() -> None:
    assert int(safe_int32_increment(jnp.int32(2**31 - 1))) == 2**31 - 1


A23 = jnp.ones((2, 3))
WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: scale_gradient(X, float("nan")), ArgumentError, "scale=nan is not finite"),
    (lambda: scale_gradient(X, jnp.array([1.0, jnp.inf])), ArgumentError, "is not finite"),
    (lambda: scale_gradient(X, "1"), ArgumentTypeError, "scale='1' is no number"),  # type: ignore[arg-type]
    (lambda: scale_gradient(X, scal=2.0), ArgumentTypeError, "did you mean 'scale'"),  # type: ignore[call-arg]
    (lambda: nnls(A23, jnp.ones(3), 5), ArgumentError, r"A of shape \(2, 3\), b of shape"),
    (lambda: nnls(A23[0], jnp.ones(3), 5), ArgumentError, r"A of shape \(3,\)"),
    (lambda: nnls(A23, jnp.ones(2), -1), ArgumentError, "iters=-1 is too small"),
    (lambda: nnls(A23, jnp.ones(2), 2.5), ArgumentTypeError, "iters=2.5 is a float"),  # type: ignore[arg-type]
    (
        lambda: multi_normal(jnp.ones(2), jnp.ones(3)),
        ArgumentError,
        "pass shapes that broadcast",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_a_wrong_use_raises(
    make: Callable[[], Any], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()
