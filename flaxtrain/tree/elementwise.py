"""Operations on every entry of a tree, or of several trees of one structure.

A leaf that is `None` is no leaf: it stays `None`, and must be `None` in all trees.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.tree.paths import is_none
from flaxtrain.typing import ArrayLike, PyTree

__all__ = ["add", "add_scale", "clip", "conj", "div", "mul", "real", "scale", "sub", "where"]


def add(tree_x: PyTree, tree_y: PyTree, *other_trees: PyTree) -> PyTree:
    """Returns the sum of two or more trees.

    Example:
        >>> add({"a": 1.0}, {"a": 2.0}, {"a": 3.0})
        {'a': 6.0}
    """
    # From 0, as optax: the sum of booleans is an integer.
    return jax.tree.map(
        lambda *leaves: functools.reduce(operator.add, leaves, 0), tree_x, tree_y, *other_trees
    )


def sub(tree_x: PyTree, tree_y: PyTree) -> PyTree:
    """Returns `tree_x - tree_y`.

    Example:
        >>> sub({"a": 3.0}, {"a": 2.0})
        {'a': 1.0}
    """
    return jax.tree.map(operator.sub, tree_x, tree_y)


def mul(tree_x: PyTree, tree_y: PyTree) -> PyTree:
    """Returns the product, entry by entry.

    Example:
        >>> mul({"a": 3.0}, {"a": 2.0})
        {'a': 6.0}
    """
    return jax.tree.map(operator.mul, tree_x, tree_y)


def div(tree_x: PyTree, tree_y: PyTree) -> PyTree:
    """Returns the quotient, entry by entry.

    Example:
        >>> div({"a": 3.0}, {"a": 2.0})
        {'a': 1.5}
    """
    return jax.tree.map(operator.truediv, tree_x, tree_y)


def scale(scalar: ArrayLike, tree: PyTree) -> PyTree:
    """Returns `scalar * tree`.

    Example:
        >>> scale(2.0, {"a": 3.0, "b": None})
        {'a': 6.0, 'b': None}
    """
    return jax.tree.map(lambda x: scalar * x, tree)


def add_scale(tree_x: PyTree, scalar: ArrayLike, tree_y: PyTree) -> PyTree:
    """Returns `tree_x + scalar * tree_y`.

    A leaf of `tree_x` that is `None` stays `None`; where `tree_y` has `None`, nothing is added.

    Example:
        >>> total = add_scale({"a": 1.0, "b": 5.0}, 0.5, {"a": 4.0, "b": None})
        >>> print(total["a"], total["b"])
        3.0 5.0
    """
    factor = jnp.asarray(scalar)

    def total(x: Any, y: Any) -> Any:
        return x if x is None or y is None else x + factor * y

    return jax.tree.map(total, tree_x, tree_y, is_leaf=is_none)


def clip(
    tree: PyTree, min_value: ArrayLike | None = None, max_value: ArrayLike | None = None
) -> PyTree:
    """Returns the tree with every entry limited to `[min_value, max_value]`.

    Args:
        tree: any pytree of real arrays.
        min_value: the lower limit; None for none.
        max_value: the upper limit; None for none.

    Example:
        >>> print(clip({"a": jnp.array([-2.0, 0.5, 2.0])}, -1.0, 1.0)["a"])
        [-1.   0.5  1. ]
    """
    return jax.tree.map(lambda x: jnp.clip(x, min_value, max_value), tree)


def conj(tree: PyTree) -> PyTree:
    """Returns the complex conjugate.

    Example:
        >>> print(conj({"a": jnp.array([1.0 + 2.0j])})["a"])
        [1.-2.j]
    """
    return jax.tree.map(jnp.conj, tree)


def real(tree: PyTree) -> PyTree:
    """Returns the real part.

    Example:
        >>> print(real({"a": jnp.array([1.0 + 2.0j])})["a"])
        [1.]
    """
    return jax.tree.map(jnp.real, tree)


def where(condition: ArrayLike, tree_x: PyTree, tree_y: PyTree) -> PyTree:
    """Returns `tree_x` where the condition holds, else `tree_y`.

    Args:
        condition: a boolean scalar, or an array that broadcasts against every leaf.
        tree_x: taken where it is true.
        tree_y: taken where it is false.

    Example:
        >>> print(where(jnp.array(True), {"a": 1.0}, {"a": 2.0})["a"])
        1.0
    """
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree_x, tree_y)
