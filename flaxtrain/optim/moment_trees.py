"""Moving averages of whole trees, for transformations that are written by hand.

For a decay b, a tree of gradients g and t = 1, 2, ...:
    moment of order k:  m <- b m + (1 - b) g^k       bias correction:  m / (1 - b^t)
    infinity:           m <- max(b m, |g| + eps)
Rules about one array (`per_leaf`) have these from `moments`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.optim.moments import (
    Decay,
    bias_correction,
    debiased,
    moving_average,
    squared_magnitude,
    value,
)
from flaxtrain.tree import is_none
from flaxtrain.typing import Array, ArrayLike, PyTree, Updates

__all__ = [
    "tree_bias_correction",
    "tree_update_infinity_moment",
    "tree_update_moment",
    "tree_update_moment_per_elem_norm",
]


def tree_update_moment(
    updates: Updates, moments: PyTree, decay: Decay, order: int | float
) -> PyTree:
    """Returns `decay * moments + (1 - decay) * updates^order`.

    Args:
        updates: a tree of gradients; where it has `None`, the result has it too.
        moments: the averages so far, of the same structure.
        decay: the decay b, in [0, 1).
        order: the power k.

    Example:
        >>> print(tree_update_moment({"w": jnp.array(3.0)}, {"w": jnp.array(1.0)}, 0.5, 2)["w"])
        5.0
    """
    return _map(lambda g, m: moving_average(decay, g**order, m), updates, moments)


def tree_update_moment_per_elem_norm(
    updates: Updates, moments: PyTree, decay: Decay, order: int | float
) -> PyTree:
    """Returns `decay * moments + (1 - decay) * |updates|^order`, real also for complex updates.

    For real updates the power is taken with its sign, as in `tree_update_moment`.

    Args:
        updates: a tree of gradients; where it has `None`, the result has it too.
        moments: the averages so far, of the same structure.
        decay: the decay b, in [0, 1).
        order: the power k.

    Example:
        >>> g, m = {"w": jnp.array(3.0 + 4.0j)}, {"w": jnp.array(1.0)}
        >>> print(tree_update_moment_per_elem_norm(g, m, 0.5, 2)["w"])
        13.0
    """

    def power(g: Array) -> Array:
        if not jnp.iscomplexobj(g):
            return g**order
        half = order / 2
        return squared_magnitude(g) ** (int(half) if half == int(half) else half)

    return _map(lambda g, m: moving_average(decay, power(g), m), updates, moments)


def tree_update_infinity_moment(
    updates: Updates, moments: PyTree, decay: Decay, eps: ArrayLike
) -> PyTree:
    """Returns `max(|updates| + eps, decay * moments)`.

    Args:
        updates: a tree of gradients; where it has `None`, the result has it too.
        moments: the maxima so far, of the same structure.
        decay: the decay b, in [0, 1).
        eps: added to the magnitude, so that the result is not 0.

    Example:
        >>> g, m = {"w": jnp.array([3.0, -1.0])}, {"w": jnp.array([4.0, 4.0])}
        >>> print(tree_update_infinity_moment(g, m, 0.5, 0.0)["w"])
        [3. 2.]
    """
    return _map(lambda g, m: jnp.maximum(jnp.abs(g) + eps, value(decay) * m), updates, moments)


def tree_bias_correction(moment: PyTree, decay: Decay, count: ArrayLike) -> PyTree:
    """Returns `moment / (1 - decay^count)`, each leaf in its own dtype.

    Args:
        moment: averages that started at zero.
        decay: the decay b, in [0, 1).
        count: how many values were averaged, at least 1.

    Example:
        >>> print(tree_bias_correction({"w": jnp.array(3.0)}, 0.5, jnp.int32(2))["w"])
        4.0
    """
    correction = bias_correction(decay, jnp.asarray(count))
    return jax.tree.map(lambda m: debiased(m, correction), moment)


def _map(function: Callable[[Any, Any], Any], updates: Updates, moments: PyTree) -> PyTree:
    return jax.tree.map(
        lambda g, m: None if g is None else function(g, m),
        updates,
        moments,
        is_leaf=is_none,
    )
