"""Roots of matrices: against float64 eigendecompositions, against optax, and where it fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from flaxtrain.optim import matrix_inverse_pth_root, power_iteration
from flaxtrain.optim.matrix_root import inverse_pth_root

POWERS = (1, 2, 3, 4, 8, 16)


def symmetric(values: np.ndarray, seed: int = 0, *, is_complex: bool = False) -> np.ndarray:
    """Returns a matrix with these eigenvalues in float64 (or complex128)."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(len(values), len(values)))
    if is_complex:
        raw = raw + 1j * rng.normal(size=raw.shape)
    q, _ = np.linalg.qr(raw)
    a = (q * values) @ q.conj().T
    return (a + a.conj().T) / 2


def truth(a: Any, p: int, ridge: float) -> np.ndarray:
    """The eigendecomposition of exactly this matrix, in float64."""
    a = np.asarray(a)
    w, v = np.linalg.eigh(a.astype(np.complex128 if np.iscomplexobj(a) else np.float64))
    return (v * (np.maximum(w, 0) + ridge * w[-1]) ** (-1 / p)) @ v.conj().T


def error(found: Any, a: Any, p: int, ridge: float) -> float:
    """The relative error in the Frobenius norm."""
    expected = truth(a, p, ridge)
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("size", [5, 64, 200])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_float32_is_good_to_1e_4_at_a_condition_number_of_1000(p: int, size: int) -> None:
    a = symmetric(np.logspace(-3, 0, size)).astype(np.float32)
    # An eigenvalue is off by a few roundings (6e-8) of the largest: 1e-4 of the smallest.
    assert error(inverse_pth_root(jnp.asarray(a), p, 0.0), a, p, 0.0) < 1e-4


@pytest.mark.parametrize("kind", ["logarithmic", "half of the rank"])
@pytest.mark.parametrize("p", [4, 8])
def test_float32_is_good_to_2e_2_where_only_the_ridge_bounds_the_condition(
    p: int, kind: str
) -> None:
    values = np.logspace(-9, 0, 96)
    if kind == "half of the rank":
        values = np.concatenate([np.zeros(48), np.linspace(0.1, 1.0, 48)])
    a = symmetric(values, seed=1).astype(np.float32)
    # A rounding of 6e-8 is 6% of the ridge of 1e-6, and the p-th root takes that down by p.
    assert error(inverse_pth_root(jnp.asarray(a), p, 1e-6), a, p, 1e-6) < 2e-2


@pytest.mark.parametrize("is_complex", [False, True])
def test_float64_is_good_to_1e_10(is_complex: bool) -> None:
    with jax.enable_x64(True):
        for values, ridge in ((np.logspace(-3, 0, 40), 0.0), (np.logspace(-9, 0, 40), 1e-6)):
            for p in POWERS:
                a = symmetric(values, is_complex=is_complex)
                assert error(inverse_pth_root(jnp.asarray(a), p, ridge), a, p, ridge) < 1e-10


def test_the_root_to_the_power_p_is_the_inverse() -> None:
    with jax.enable_x64(True):
        a = symmetric(np.linspace(0.5, 2.0, 12))
        x = np.asarray(inverse_pth_root(jnp.asarray(a), 6, 0.0))
        np.testing.assert_allclose(np.linalg.matrix_power(x, 6) @ a, np.eye(12), atol=1e-12)


def test_a_stack_gives_what_its_matrices_give() -> None:
    a = jnp.asarray([symmetric(np.linspace(0.5, 2.0, 6), seed) for seed in range(3)], "float32")
    together = inverse_pth_root(a, 4)
    for one, root in zip(a, together):
        # Sums in another order.
        np.testing.assert_allclose(root, inverse_pth_root(one, 4), rtol=1e-5, atol=1e-6)


def test_roots_scale_with_the_matrix_over_the_whole_range_of_float32() -> None:
    a = symmetric(np.logspace(-3, 0, 16)).astype(np.float32)
    expected = inverse_pth_root(jnp.asarray(a), 4)
    for scale in (2.0**-80, 2.0**100):
        scaled = inverse_pth_root(jnp.asarray(a * np.float32(scale)), 4)
        # Roundings (6e-8) of the largest entry, times the root of the condition number.
        np.testing.assert_allclose(scaled * scale**0.25, expected, atol=2e-5)


def test_zeros_have_a_finite_root_and_nan_and_infinity_have_none() -> None:
    assert bool(jnp.all(jnp.isfinite(inverse_pth_root(jnp.zeros((3, 3)), 4))))
    for bad in (jnp.nan, jnp.inf):
        assert bool(jnp.all(jnp.isnan(inverse_pth_root(jnp.eye(3).at[1, 1].set(bad), 4))))


def test_signatures_are_optax_s() -> None:
    for ours, judge in (
        (power_iteration, optax.power_iteration),
        (matrix_inverse_pth_root, optax.matrix_inverse_pth_root),
    ):
        pair = [inspect.signature(f).parameters.values() for f in (ours, judge)]
        assert [(p.name, p.kind, p.default) for p in pair[0]] == [
            (p.name, p.kind, p.default) for p in pair[1]
        ]


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_coupled_newton_agrees_with_optax(p: int, condition: float) -> None:
    a = jnp.asarray(symmetric(np.geomspace(1 / condition, 1.0, 20)), jnp.float32)
    ours, ours_error = matrix_inverse_pth_root(a, p)
    judge, judge_error = optax.matrix_inverse_pth_root(a, p)
    # Float32 roundings, times the condition number, in both of them.
    assert np.linalg.norm(ours - judge) <= 1e-6 * condition * np.linalg.norm(judge)
    assert abs(float(ours_error) - float(judge_error)) < 1e-4
    assert error(ours, a, p, 1e-6) < 1e-6 * condition


def test_coupled_newton_agrees_with_optax_under_jit_and_for_a_traced_root() -> None:
    a = jnp.asarray(symmetric(np.linspace(0.1, 1.0, 9)), jnp.float32)
    ours, _ = jax.jit(matrix_inverse_pth_root)(a, 4)
    judge, _ = jax.jit(optax.matrix_inverse_pth_root)(a, 4)
    np.testing.assert_allclose(ours, judge, rtol=1e-4, atol=1e-5)


def test_roots_that_are_no_power_of_two_are_right() -> None:
    a = jnp.asarray(symmetric(np.linspace(0.2, 1.0, 9)), jnp.float32)
    for p in (3, 5, 6, 16):
        assert error(matrix_inverse_pth_root(a, p)[0], a, p, 1e-6) < 1e-4
    wrong = [optax.matrix_inverse_pth_root(a, p)[0] for p in (3, 6)]
    assert all(error(found, a, p, 1e-6) > 1e-2 for found, p in zip(wrong, (3, 6)))


def test_float64_matrices_get_roots_in_float64() -> None:
    with jax.enable_x64(True):
        a = jnp.asarray(symmetric(np.linspace(0.2, 1.0, 9)))
        root, left = matrix_inverse_pth_root(a, 4, error_tolerance=1e-13)
        assert root.dtype == jnp.float64 and left < 1e-12
        # The ridge is a share of an eigenvalue that is known to 1e-6: an error of 1e-12.
        assert error(root, a, 4, 1e-6) < 1e-11


def test_a_matrix_of_zeros_has_a_finite_root() -> None:
    root, _ = matrix_inverse_pth_root(jnp.zeros((3, 3)), 4)
    assert bool(jnp.all(jnp.isfinite(root)))
    assert not bool(
        jnp.all(jnp.isfinite(optax.matrix_inverse_pth_root(jnp.zeros((3, 3)), 4)[0]))
    )


def test_a_single_number_is_a_matrix_too() -> None:
    root, left = matrix_inverse_pth_root(jnp.array([[16.0]]), 4)
    np.testing.assert_allclose(root, [[0.5]], rtol=1e-6)
    assert left == 0


def test_bfloat16_matrices_are_computed_in_float32() -> None:
    a = jnp.diag(jnp.array([1.0, 16.0], jnp.bfloat16))
    root, _ = matrix_inverse_pth_root(a, 4)
    assert root.dtype == jnp.bfloat16
    np.testing.assert_array_equal(root.diagonal().astype(jnp.float32), [1.0, 0.5])
    w, v = power_iteration(a)
    assert w.dtype == v.dtype == jnp.bfloat16 and w == 16


def test_power_iteration_agrees_with_optax() -> None:
    a = jnp.asarray(symmetric(np.linspace(0.1, 3.0, 9)), jnp.float32)
    for arguments in ({}, {"num_iters": 3}, {"key": jax.random.PRNGKey(3), "num_iters": 5}):
        ours, judge = power_iteration(a, **arguments), optax.power_iteration(a, **arguments)
        np.testing.assert_allclose(ours[0], judge[0], rtol=1e-6)  # ten roundings
        np.testing.assert_allclose(ours[1], judge[1], rtol=1e-5, atol=1e-6)


def test_power_iteration_takes_a_function_of_trees() -> None:
    def product(tree: Any) -> Any:
        return {"a": 5.0 * tree["a"], "b": 2.0 * tree["b"]}

    start = {"a": jnp.ones(2), "b": jnp.ones(3)}
    ours, judge = (f(product, v0=start) for f in (power_iteration, optax.power_iteration))
    np.testing.assert_allclose(ours[0], 5.0, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), ours, judge)


def test_power_iteration_finds_negative_and_complex_hermitian_eigenvalues() -> None:
    w, _ = power_iteration(jnp.diag(jnp.array([-3.0, 1.0])))
    np.testing.assert_allclose(w, -3.0, rtol=1e-5)
    a = jnp.asarray(symmetric(np.array([0.5, 1.0, 4.0]), is_complex=True), jnp.complex64)
    np.testing.assert_allclose(power_iteration(a)[0].real, 4.0, rtol=1e-5)
    np.testing.assert_allclose(power_iteration(a)[0].imag, 0.0, atol=1e-5)
    with pytest.raises(ValueError):
        optax.power_iteration(a)


def test_the_largest_eigenvalue_of_zeros_is_zero() -> None:
    w, v = power_iteration(jnp.zeros((3, 3)))
    assert w == 0 and bool(jnp.isclose(jnp.linalg.norm(v), 1.0))
    assert np.isnan(optax.power_iteration(jnp.zeros((3, 3)))[0])


def test_power_iteration_works_in_float32_when_float64_is_switched_on() -> None:
    with jax.enable_x64(True):
        a = jnp.diag(jnp.array([2.0, 1.0], jnp.float32))
        assert power_iteration(a)[0].dtype == jnp.float32


EYE = jnp.eye(2)
WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: inverse_pth_root(jnp.ones((2, 3)), 2), ArgumentError, "(2, 3)"),
    (lambda: inverse_pth_root(EYE, 0), ArgumentError, "p=0"),
    (lambda: inverse_pth_root(EYE, 2.0), ArgumentTypeError, "p=2.0"),
    (lambda: inverse_pth_root(EYE, 2, -1.0), ArgumentError, "ridge=-1.0"),
    (lambda: matrix_inverse_pth_root(jnp.ones(3), 2), ArgumentError, "(3,)"),
    (lambda: matrix_inverse_pth_root(jnp.ones((1, 2, 2)), 2), ArgumentError, "(1, 2, 2)"),
    (lambda: matrix_inverse_pth_root(EYE, 0), ArgumentError, "p=0"),
    (lambda: matrix_inverse_pth_root(EYE, 2.5), ArgumentTypeError, "p=2.5"),
    (lambda: matrix_inverse_pth_root(EYE, "2"), ArgumentTypeError, "p='2'"),
    (lambda: matrix_inverse_pth_root(EYE, 2, -1), ArgumentError, "num_iters=-1"),
    (lambda: matrix_inverse_pth_root(EYE, 2, 9, -1.0), ArgumentError, "ridge_epsilon=-1.0"),
    (lambda: matrix_inverse_pth_root(EYE, 2, 9, 0.0, -1), ArgumentError, "error_tolerance=-1"),
    (lambda: power_iteration(jnp.ones((2, 3))), ArgumentError, "(2, 3)"),
    (lambda: power_iteration(lambda v: v), ArgumentError, "shape"),
    (lambda: power_iteration(EYE, num_iters=-1), ArgumentError, "num_iters=-1"),
    (lambda: power_iteration(EYE, error_tolerance=-1.0), ArgumentError, "error_tolerance=-1.0"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value) and caught.value.fix
