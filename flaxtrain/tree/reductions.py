"""One number for a whole tree.

The names are those of the functions for one array; in this module, `builtins.sum` is the sum
of numbers.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.tree.arithmetic import global_norm, sum_of_squares
from flaxtrain.typing import Array, ArrayLike, PyTree

__all__ = ["allclose", "max", "min", "nbytes", "norm", "size", "sum", "vdot"]


def sum(tree: PyTree, associative_reduction: bool = False) -> ArrayLike:
    """Returns the sum of all entries; 0 for an empty tree.

    Args:
        tree: any pytree of arrays.
        associative_reduction: add the leaves' sums in pairs: a large tree compiles faster, and
            the result may differ by roundings.

    Example:
        >>> print(sum({"a": jnp.ones(2), "b": jnp.ones(3)}))
        5.0
    """
    sums = jax.tree.map(jnp.sum, tree)
    if associative_reduction:
        return jax.tree.reduce_associative(operator.add, sums, identity=0)
    return jax.tree.reduce(operator.add, sums, initializer=0)


def max(tree: PyTree) -> ArrayLike:
    """Returns the largest entry; minus infinity if there is none.

    Example:
        >>> print(max({"a": jnp.array([1.0, 3.0]), "b": jnp.zeros(0)}))
        3.0
    """
    tops = [jnp.max(leaf) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    return functools.reduce(jnp.maximum, tops, -np.inf)


def min(tree: PyTree) -> ArrayLike:
    """Returns the smallest entry; infinity if there is none.

    Example:
        >>> print(min({"a": jnp.array([1.0, 3.0]), "b": jnp.zeros(0)}))
        1.0
    """
    bottoms = [jnp.min(leaf) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    return functools.reduce(jnp.minimum, bottoms, np.inf)


def size(tree: PyTree) -> int:
    """Returns the number of entries.

    Example:
        >>> size({"a": jnp.ones((2, 3)), "b": 1.0})
        7
    """
    return builtins.sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Returns the memory that the arrays take, in bytes; of a random key, that of its integers.

    Args:
        tree: any pytree of arrays, of their shapes and dtypes, or of numbers.

    Example:
        >>> nbytes({"a": jnp.ones((2, 3)), "b": jax.ShapeDtypeStruct((4,), jnp.bfloat16)})
        32
    """
    leaves = jax.tree.leaves(tree)
    arrays = (leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves)
    return builtins.sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def vdot(tree_x: PyTree, tree_y: PyTree) -> ArrayLike:
    """Returns the inner product; of complex entries, those of `tree_x` are conjugated.

    Args:
        tree_x: any pytree of arrays.
        tree_y: a tree of the same structure and shapes.

    Raises:
        ParameterError: two leaves differ in shape.

    Example:
        >>> print(vdot({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 4.0])}))
        11.0
    """
    return jax.tree.reduce(operator.add, jax.tree.map(_vdot, tree_x, tree_y), initializer=0)


def _vdot(x: Any, y: Any) -> Array:
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.shape != y.shape:
        raise ParameterError(
            f"leaves of shapes {x.shape} and {y.shape} have no inner product",
            where="tree.vdot",
            fix="pass two trees of the same shapes",
        )
    # Not jnp.vdot: it flattens, which moves data between devices where leaves are sharded.
    mesh = jax.typeof(x).sharding.mesh
    whole = jax.sharding.NamedSharding(mesh, jax.P()) if mesh.are_all_axes_explicit else None
    left = jnp.conj(x) if jnp.iscomplexobj(x) else x
    precision = jax.lax.Precision.HIGHEST
    return jnp.tensordot(left, y, x.ndim, precision=precision, out_sharding=whole)


def norm(tree: PyTree, ord: int | str | float | None = None, squared: bool = False) -> Array:
    """Returns the vector norm over all leaves together.

    Args:
        tree: any pytree of arrays; the norm of an empty one is 0 (minus infinity for `inf`).
        ord: None or 2, 1, or `inf` (also as a text, `"inf"`, `"infinity"`).
        squared: return the square instead.

    Raises:
        ArgumentError: there is no such norm.

    Example:
        >>> vector = {"a": jnp.array([3.0]), "b": jnp.array([-4.0])}
        >>> print(norm(vector), norm(vector, squared=True), norm(vector, "inf"))
        5.0 25.0 4.0
    """
    if ord is None or ord == 2:
        return sum_of_squares(tree) if squared else global_norm(tree)
    if ord == 1:
        found = sum(jax.tree.map(jnp.abs, tree))
    elif ord in (np.inf, "inf", "infinity"):
        found = max(jax.tree.map(jnp.abs, tree))
    else:
        raise ArgumentError(
            f"ord={ord!r} is not a norm of trees",
            where="tree.norm",
            fix="pass None, 1, 2 or inf",
        )
    return jnp.array(jnp.square(found) if squared else found)


def allclose(
    a: PyTree,
    b: PyTree,
    rtol: ArrayLike = 1e-05,
    atol: ArrayLike = 1e-08,
    equal_nan: bool = False,
) -> Any:
    """Returns whether `|a - b| <= atol + rtol |b|` everywhere.

    Args:
        a: any pytree of arrays.
        b: a tree of the same structure.
        rtol: tolerance relative to the entry of `b`.
        atol: absolute tolerance.
        equal_nan: whether NaN equals NaN.

    Returns:
        A boolean scalar; True for empty trees.

    Example:
        >>> print(allclose({"a": 1.0}, {"a": 1.0 + 1e-7}), allclose({"a": 1.0}, {"a": 1.1}))
        True False
    """
    close = jax.tree.map(
        lambda x, y: jnp.allclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan), a, b
    )
    return functools.reduce(operator.and_, jax.tree.leaves(close), True)
