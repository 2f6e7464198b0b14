"""Roots of symmetric matrices: `A^(-1/p)`, and the largest eigenvalue.

Golub & Van Loan 2013, "Matrix Computations", section 7.3.1 (power iteration).
Higham 2008, "Functions of Matrices", doi:10.1137/1.9780898717778, equation 7.18 (the coupled
Newton iteration, in the variant that starts from `c = (2 |A| / (p + 1))^(1/p)`).

Coupled Newton keeps `X^p A = M` while `M` goes to the identity:
    z = (1 + p) / (2 |A|)        M <- z A        X <- z^(1/p) I
    T = ((p + 1) I - M) / p      M <- T^p M      X <- X T
The eigendecomposition `A = V diag(w) V^H` gives the root at once, for a stack of matrices:
    A^(-1/p) = V diag(w^(-1/p)) V^H
On CPUs it is the faster one, and it is as accurate as the dtype allows; Shampoo uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxtrain.checks import check_integer, check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.typing import Array, ArrayLike, Inexact, Key, PyTree

__all__ = ["inverse_pth_root", "matrix_inverse_pth_root", "power_iteration"]


def inverse_pth_root(
    matrix: Inexact[Array, "*batch n n"], p: int, ridge: ArrayLike = 1e-6
) -> Inexact[Array, "*batch n n"]:
    """Returns `(A + ridge w_max I)^(-1/p)` of positive semidefinite matrices, in their dtype.

    By eigendecomposition. The smallest normal number of the dtype is added as well, so that
    the root of zeros is finite. A matrix with entries that are not finite has a root of NaN.

    Args:
        matrix: symmetric or Hermitian matrices, in the last two axes; float32 or wider.
        p: the root, >= 1.
        ridge: share of the largest eigenvalue `w_max` that is added to all of them, >= 0. In
            float32 eigenvalues below 1e-7 `w_max` are noise.

    Raises:
        ArgumentError: a matrix is not square, or a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> root = inverse_pth_root(jnp.diag(jnp.array([16.0, 81.0])), 4, ridge=0.0)
        >>> print(root.diagonal().round(4))
        [0.5    0.3333]
    """
    _check_square(matrix, where="inverse_pth_root")
    check_integer("p", p, minimum=1, where="inverse_pth_root")
    check_number("ridge", ridge, minimum=0.0, where="inverse_pth_root")
    # Written with few operations: an optimizer compiles them once for every parameter.
    _, v = jnp.linalg.eigh(matrix)
    # Quotients v^H A v are second order in the error of v. For small eigenvalues that is an
    # order of magnitude better than what the decomposition itself returns.
    w = jnp.sum(jnp.conj(v) * _times(matrix, v), axis=-2, keepdims=True).real
    largest = jnp.max(w, axis=-1, keepdims=True)
    floor = jnp.asarray(ridge, w.dtype) * largest + jnp.finfo(w.dtype).tiny
    half = v * (jnp.maximum(w, 0) + floor) ** (-0.5 / p)
    return _times(half, jnp.conj(jnp.swapaxes(half, -1, -2)))


def power_iteration(
    matrix: ArrayLike | Callable[[PyTree], PyTree],
    *,
    v0: PyTree | None = None,
    num_iters: ArrayLike = 100,
    error_tolerance: ArrayLike = 1e-6,
    precision: Any = lax.Precision.HIGHEST,
    key: Key | None = None,
) -> tuple[Array, PyTree]:
    """Returns the eigenvalue of largest magnitude and its eigenvector, of norm 1.

    Arithmetic is in float32 or wider. A matrix that maps the start to zero has the eigenvalue 0
    and the start as eigenvector.

    Args:
        matrix: a square matrix, or a function from a vector (any tree) to its product.
        v0: where to start, a vector or tree; needed if `matrix` is a function. Default:
            uniform in [-1, 1].
        num_iters: the largest number of products, >= 0.
        error_tolerance: stop when `|A v - w v| < error_tolerance |w|`, >= 0.
        precision: of the products of matrices.
        key: for the default of `v0`; None: `jax.random.PRNGKey(0)`.

    Raises:
        ArgumentError: `matrix` is not square, is a function without `v0`, or a value is out of
            range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> w, v = power_iteration(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> print(round(float(w), 4), jnp.abs(v).round(3))
        3.0 [0.707 0.707]
    """
    check_integer("num_iters", num_iters, minimum=0, where="power_iteration")
    check_number("error_tolerance", error_tolerance, minimum=0.0, where="power_iteration")
    product, start, dtype = _product_and_start(matrix, v0, precision, key)

    def unfinished(state: tuple[PyTree, PyTree, Array, Array]) -> Array:
        v, image, w, done = state
        residual = jax.tree.map(lambda z, x: z - w * x, image, v)
        small = _norm(residual) < jnp.asarray(error_tolerance) * jnp.abs(w)
        return ~(small | (_norm(image) == 0)) & (done < num_iters)

    def advance(state: tuple[PyTree, PyTree, Array, Array]) -> Any:
        _, image, w, done = state
        v = _normalised(image)
        image = product(v)
        return v, image, _inner(v, image).astype(w.dtype), done + 1

    v = _normalised(start)
    image = product(v)
    w = jnp.zeros_like(_inner(v, image))
    v, image, w, _ = lax.while_loop(unfinished, advance, (v, image, w, jnp.int32(0)))
    vanished = _norm(image) == 0
    direction = _normalised(image)
    v = jax.tree.map(lambda a, b: jnp.where(vanished, a, b), v, direction)
    return (w, v) if dtype is None else (w.astype(dtype), v.astype(dtype))


def matrix_inverse_pth_root(
    matrix: ArrayLike,
    p: ArrayLike,
    num_iters: ArrayLike = 100,
    ridge_epsilon: ArrayLike = 1e-6,
    error_tolerance: ArrayLike = 1e-6,
    precision: Any = lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
    """Returns `(A + ridge_epsilon w_max I)^(-1/p)` by coupled Newton, and its error.

    Arithmetic is in float32 or wider. The iteration also ends when the error grows by more than
    a fifth, and takes the step back.

    Args:
        matrix: a symmetric positive semidefinite matrix.
        p: the root, a whole number >= 1.
        num_iters: the largest number of iterations, >= 0.
        ridge_epsilon: share of the largest eigenvalue that is added to all of them, >= 0.
        error_tolerance: stop when `max |M - I|` is at most that, >= 0.
        precision: of the products of matrices.

    Returns:
        The root in the dtype of the matrix, and `max |M - I|`.

    Raises:
        ArgumentError: `matrix` is not square, or a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> root, error = matrix_inverse_pth_root(jnp.diag(jnp.array([16.0, 81.0])), 4)
        >>> print(root.diagonal().round(4), bool(error < 1e-5))
        [0.5    0.3333] True
    """
    where = "matrix_inverse_pth_root"
    _check_power(p, where=where)
    check_integer("num_iters", num_iters, minimum=0, where=where)
    check_number("ridge_epsilon", ridge_epsilon, minimum=0.0, where=where)
    check_number("error_tolerance", error_tolerance, minimum=0.0, where=where)
    given = jnp.asarray(matrix)
    _check_square(given, where=where, stacks=False)
    a = given.astype(jnp.promote_types(given.dtype, jnp.float32))
    result = given.dtype if jnp.issubdtype(given.dtype, jnp.inexact) else a.dtype
    one = jnp.eye(a.shape[0], dtype=a.dtype)
    largest, _ = power_iteration(a, precision=precision)
    ridge = jnp.asarray(ridge_epsilon, a.real.dtype) * jnp.maximum(largest.real, 1e-16)
    if a.shape[0] == 1:
        return ((a + ridge) ** (-1.0 / p)).astype(result), jnp.zeros([], a.real.dtype)
    start = _newton_start(a + ridge * one, p, one)

    def unfinished(state: _Newton) -> Array:
        return (state.done < num_iters) & (state.error > error_tolerance) & state.improves

    def advance(state: _Newton) -> _Newton:
        t = (one * (1.0 + 1.0 / p) - state.m * (1.0 / p)).astype(a.dtype)
        m = jnp.matmul(_power(t, p, precision), state.m, precision=precision)
        error = jnp.max(jnp.abs(m - one))
        # The error may rise a little before it falls.
        improves = error < 1.2 * state.error
        x = jnp.matmul(state.x, t, precision=precision)
        return _Newton(state.done + 1, m, x, state.x, error, improves)

    end = lax.while_loop(unfinished, advance, start)
    return jnp.where(end.improves, end.x, end.x_before).astype(result), end.error


class _Newton(NamedTuple):
    """The state of the iteration; names are those of the module's formulas."""

    done: Array
    m: Array
    x: Array
    x_before: Array
    error: Array
    improves: Array


def _newton_start(a: Array, p: ArrayLike, one: Array) -> _Newton:
    size = jnp.max(jnp.abs(a))  # divided out first: squares of a tiny ridge would vanish
    z = ((1 + p) / (2 * size * jnp.linalg.norm(a / size))).astype(a.real.dtype)
    m, x = z * a, one * (z ** (1.0 / p)).astype(a.dtype)
    return _Newton(jnp.int32(0), m, x, x, jnp.max(jnp.abs(m - one)), jnp.bool_(True))


def _power(t: Array, p: Any, precision: Any) -> Array:
    """Returns `t^p` for a whole p, known now (by squaring) or not (one factor at a time)."""
    times = lambda a, b: jnp.matmul(a, b, precision=precision)  # noqa: E731
    if not is_concrete(p):
        return lax.fori_loop(1, jnp.asarray(p, jnp.int32), lambda _, power: times(power, t), t)
    rest, result = int(p), None
    while True:
        if rest % 2:
            result = t if result is None else times(result, t)
        rest //= 2
        if rest == 0:
            assert result is not None
            return result
        t = times(t, t)


def _product_and_start(
    matrix: ArrayLike | Callable[[PyTree], PyTree], v0: PyTree | None, precision: Any, key: Any
) -> tuple[Callable[[PyTree], PyTree], PyTree, Any]:
    """Returns also the dtype of the result: that of a matrix, None for a function."""
    if callable(matrix):
        if v0 is None:
            raise ArgumentError(
                "a function gives no hint of the vector's shape",
                where="power_iteration",
                fix="pass v0, a vector or tree that the function accepts",
            )
        return matrix, v0, None
    given = jnp.asarray(matrix)
    _check_square(given, where="power_iteration", stacks=False)
    a = given.astype(jnp.promote_types(given.dtype, jnp.float32))
    result = given.dtype if jnp.issubdtype(given.dtype, jnp.inexact) else a.dtype
    if v0 is None:
        key = jax.random.PRNGKey(0) if key is None else key
        v0 = jax.random.uniform(key, a.shape[-1:], a.real.dtype, minval=-1.0, maxval=1.0)
    product = lambda v: jnp.matmul(a, v, precision=precision)  # noqa: E731
    return product, jnp.asarray(v0).astype(a.dtype), result


def _inner(a: PyTree, b: PyTree) -> Array:
    parts = jax.tree.leaves(jax.tree.map(jnp.vdot, a, b))
    return sum(parts[1:], start=jnp.asarray(parts[0]))


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(_inner(tree, tree).real)


def _normalised(tree: PyTree) -> PyTree:
    norm = _norm(tree)
    factor = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    factor = jnp.where(jnp.isnan(norm), norm, factor)
    return jax.tree.map(lambda leaf: (factor * leaf).astype(jnp.asarray(leaf).dtype), tree)


def _times(a: Array, b: Array) -> Array:
    # The default precision of matrix products is bfloat16 on TPUs and TF32 on GPUs.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_square(matrix: Array, *, where: str, stacks: bool = True) -> None:
    shape = jnp.shape(matrix)
    fits = len(shape) >= 2 if stacks else len(shape) == 2
    if not fits or shape[-1] != shape[-2]:
        raise ArgumentError(
            f"an array of shape {shape} is not a square matrix",
            where=where,
            fix="pass a matrix of shape [n, n]" + (" or a stack of them" if stacks else ""),
        )


def _check_power(p: Any, *, where: str) -> None:
    check_number("p", p, minimum=1, where=where)
    if is_concrete(p) and float(p) != int(p):
        raise ArgumentTypeError(
            f"p={p} is not a whole number", where=where, fix="pass an integer >= 1"
        )
