"""Small numerics: a gradient with a factor, a normal distribution, non-negative least squares.

Least squares: Polyak 2015, "Projected gradient method for non-negative least square", with the
momentum of Nesterov's method. For Q = A^T A, q = A^T b and L at least its largest eigenvalue:
    x_k = max(p_k - (Q p_k - q) / L, 0)
    c_(k+1) = (1 + sqrt(1 + 4 c_k^2)) / 2
    p_(k+1) = x_k + (c_k - 1) / c_(k+1) (x_k - x_(k-1))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering
from flaxtrain.checks import check_integer, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.typing import Array, ArrayLike, Key, PyTree

__all__ = [
    "MultiNormalDiagFromLogScale",
    "multi_normal",
    "nnls",
    "safe_int32_increment",
    "scale_gradient",
]

safe_int32_increment = safe_increment
"""The older name of `safe_increment`, which takes any dtype."""


@answering
def scale_gradient(inputs: PyTree, scale: ArrayLike) -> PyTree:
    """Returns `inputs` as they are; gradients through them are multiplied by `scale`.

    Args:
        inputs: any pytree of arrays.
        scale: a finite number, or an array that broadcasts to the shape of every leaf. 0 stops
            the gradient. `scale` itself has no gradient.

    Raises:
        ArgumentError: `scale` is not finite, or does not broadcast to the shape of a leaf.
        ArgumentTypeError: `scale` is not a number or an array of numbers.

    Example:
        >>> print(jax.grad(lambda x: scale_gradient(x, -0.5) ** 2)(3.0))
        -3.0
    """
    known = _known_factor(scale) if is_concrete(scale) else None
    _check_shapes(inputs, jnp.shape(scale))
    if known is not None:
        if np.all(known == 1):
            return inputs
        if np.all(known == 0):
            return jax.lax.stop_gradient(inputs)
    return jax.tree.map(lambda leaf: _through(leaf, scale), inputs)


def _known_factor(scale: ArrayLike) -> np.ndarray:
    known = np.asarray(scale)
    if not (jnp.issubdtype(known.dtype, np.number) or known.dtype == bool):
        raise ArgumentTypeError(
            f"scale={scale!r} is no number",
            where="scale_gradient",
            fix="pass a number, or an array of numbers",
        )
    if not np.all(np.isfinite(known)):
        raise ArgumentError(
            f"scale={scale} is not finite", where="scale_gradient", fix="pass a finite number"
        )
    return known


def _check_shapes(inputs: PyTree, shape: tuple[int, ...]) -> None:
    """Refuses a factor that enlarges a gradient, which has the shape of its leaf."""
    if not shape:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue  # it has no gradient
        try:
            fits = np.broadcast_shapes(shape, jnp.shape(leaf)) == jnp.shape(leaf)
        except ValueError:
            fits = False
        if not fits:
            at = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ArgumentError(
                f"scale of shape {shape} does not broadcast to {at or 'inputs'!r} of shape "
                f"{jnp.shape(leaf)}",
                where="scale_gradient",
                fix="pass a number, or call it for each leaf with a scale of its own",
            )


@jax.custom_vjp
def _through(leaf: Any, scale: Any) -> Any:
    return leaf


def _forward(leaf: Any, scale: Any) -> tuple[Any, Any]:
    return _through(leaf, scale), scale  # so that a second derivative is scaled again


def _backward(scale: Any, g: Any) -> tuple[Any, None]:
    # An integer has no gradient to be scaled.
    return (g if g.dtype == jax.dtypes.float0 else (g * scale).astype(g.dtype)), None


_through.defvjp(_forward, _backward)


class MultiNormalDiagFromLogScale:
    """A normal distribution of independent entries; made by `multi_normal`."""

    def __init__(self, loc: ArrayLike, log_scale: ArrayLike) -> None:
        self._mean, self._log_scale = jnp.asarray(loc), jnp.asarray(log_scale)
        try:
            self._shape = jax.lax.broadcast_shapes(self._mean.shape, self._log_scale.shape)
        except ValueError:
            raise ArgumentError(
                f"loc of shape {self._mean.shape}, log_scale of shape {self._log_scale.shape}",
                where="multi_normal",
                fix="pass shapes that broadcast to one another",
            ) from None

    def sample(self, shape: Sequence[int], key: Key) -> Array:
        """Returns independent draws.

        Args:
            shape: axes in front of those of one draw.
            key: a PRNG key.
        """
        noise = jax.random.normal(key, shape=(*shape, *self._shape))
        scale = jnp.broadcast_to(jnp.exp(self._log_scale), noise.shape)
        return noise * scale + jnp.broadcast_to(self._mean, noise.shape)

    def log_prob(self, x: ArrayLike) -> Array:
        """Returns the logarithm of the density at `x`, summed over the axes of one draw."""
        entries = jnp.broadcast_arrays(x, self._mean, jnp.exp(self._log_scale))
        each = jax.scipy.stats.norm.logpdf(*entries)
        return jnp.sum(each, axis=tuple(range(-len(self._shape), 0)))

    @property
    def log_scale(self) -> Array:
        """The logarithm of the standard deviation."""
        return self._log_scale

    @property
    def params(self) -> Sequence[Array]:
        """Mean and logarithm of the standard deviation."""
        return [self._mean, self._log_scale]


@answering
def multi_normal(loc: ArrayLike, log_scale: ArrayLike) -> MultiNormalDiagFromLogScale:
    """Returns the normal distribution of independent entries with these parameters.

    Args:
        loc: the mean.
        log_scale: the natural logarithm of the standard deviation.

    Raises:
        ArgumentError: the shapes don't broadcast.

    Example:
        >>> normal = multi_normal(jnp.zeros(2), jnp.zeros(2))
        >>> normal.sample((3,), jax.random.key(0)).shape
        (3, 2)
        >>> print(normal.log_prob(jnp.zeros(2)))
        -1.837877
    """
    return MultiNormalDiagFromLogScale(loc, log_scale)


@answering
def nnls(
    A: Array, b: Array, iters: int, unroll: int | bool = 1, L: ArrayLike | None = None
) -> Array:
    """Returns the `x >= 0` for which `|A x - b|` is least, by projected gradient descent.

    Args:
        A: a matrix of shape (m, n).
        b: a vector of shape (m,), or several as columns, (m, k).
        iters: number of iterations, at least 0.
        unroll: how many of them one turn of the compiled loop does; True for all.
        L: a bound of the eigenvalues of `A^T A` from above. None: the smaller one of two
            norms of it.

    Returns:
        A vector of shape (n,), or a matrix of shape (n, k).

    Raises:
        ArgumentError: the shapes don't fit, or `iters` is negative.
        ArgumentTypeError: `iters` is not an integer.

    Example:
        >>> A, b = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([5.0, 6.0])
        >>> [round(float(x), 2) for x in nnls(A, b, iters=1000)]
        [0.0, 1.7]
    """
    check_integer("iters", iters, minimum=0, where="nnls")
    if A.ndim != 2 or b.ndim not in (1, 2) or b.shape[0] != A.shape[0]:
        raise ArgumentError(
            f"A of shape {A.shape}, b of shape {b.shape}",
            where="nnls",
            fix="pass shapes (m, n) and (m,), or (m, n) and (m, k)",
        )
    Q, q = A.mT @ A, A.mT @ b
    bound = _eigenvalue_bound(Q) if L is None else L
    bound = jnp.where(bound == 0, 1, bound)

    def step(state: Any, _: None) -> tuple[Any, None]:
        x, p, c = state
        x_next = (p - (Q @ p - q) / bound).clip(0)
        c_next = (1 + jnp.sqrt(1 + 4 * c**2)) / 2
        p_next = x_next + (c - 1) / c_next * (x_next - x)
        return (x_next, p_next, c_next), None

    start = jnp.zeros_like(q)
    (x, _, _), _ = jax.lax.scan(step, (start, start, 0.0), length=iters, unroll=unroll)
    return x


def _eigenvalue_bound(Q: Array) -> Array:
    """The largest eigenvalue is at most any norm: the smaller of Frobenius and column sums."""
    if Q.size == 0:
        return jnp.zeros((), Q.dtype)
    return jnp.minimum(jnp.linalg.norm(Q), jnp.max(jnp.sum(jnp.abs(Q), axis=0)))
