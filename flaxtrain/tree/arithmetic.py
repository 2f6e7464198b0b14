"""Arithmetic on whole trees."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.typing import Array, ArrayLike, PyTree

__all__ = ["all_finite", "global_norm", "sum_of_squares", "widened"]

_SMALL = 1024


def global_norm(tree: PyTree) -> Array:
    """Returns the L2 norm over all leaves together, a scalar.

    Every leaf is squared in its own dtype (complex: `|x|^2`), as optax does; the norm of an
    empty tree is 0. NaN or infinity anywhere shows in the result.

    Example:
        >>> print(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
        5.0
    """
    return jnp.sqrt(sum_of_squares(tree))


def sum_of_squares(tree: PyTree) -> Array:
    """Returns the sum of `|x|^2` over all entries, a scalar; 0 for an empty tree.

    Example:
        >>> print(sum_of_squares({"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0 + 2.0j])}))
        30.0
    """
    return jnp.asarray(sum(jnp.sum(_squared(leaf)) for leaf in jax.tree.leaves(tree)))


def _squared(leaf: ArrayLike) -> Array:
    if jnp.iscomplexobj(leaf):
        return jnp.square(jnp.real(leaf)) + jnp.square(jnp.imag(leaf))
    return jnp.square(leaf)


def widened(tree: PyTree) -> PyTree:
    """Returns the tree with leaves of less than float32 precision as float32.

    Example:
        >>> widened({"a": jnp.ones(2, jnp.bfloat16), "n": jnp.ones(2, jnp.int32)})["a"].dtype
        dtype('float32')
    """

    def wide(leaf: ArrayLike) -> Array:
        array = jnp.asarray(leaf)
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        return array.astype(jnp.promote_types(array.dtype, jnp.float32)) if inexact else array

    return jax.tree.map(wide, tree)


def all_finite(tree: PyTree) -> Array:
    """Returns a boolean scalar: no leaf holds NaN or infinity (integer leaves are finite).

    Example:
        >>> bool(all_finite({"a": jnp.array([1.0, jnp.inf])}))
        False
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not leaves:
        return jnp.array(True)
    # Small leaves together: on a TPU, each would be a launch of its own.
    small = [jnp.ravel(leaf) for leaf in leaves if leaf.size <= _SMALL]
    looked_at = [leaf for leaf in leaves if leaf.size > _SMALL]
    looked_at += [jnp.concatenate(small)] if small else []
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in looked_at]))
