"""Fenchel-Young losses: a loss from a maximum.

For a convex function `F(s) = max_q (q . s - Omega(q))`, the loss `F(s) - s . y` is zero exactly
where the maximiser is `y`, up to `Omega(y)`, and its gradient is the maximiser minus `y`.

Blondel, Martins & Niculae 2020, arXiv:1901.02324.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from flaxtrain.typing import Array, ArrayLike

__all__ = ["make_fenchel_young_loss"]


def make_fenchel_young_loss(max_fun: Callable[..., ArrayLike]) -> Callable[..., Array]:
    """Returns the loss `max_fun(scores) - scores . targets`.

    Args:
        max_fun: maps a vector of scores (and what else the loss is called with) to a scalar;
            log-sum-exp makes the logistic loss, `jnp.max` the perceptron's.

    Returns:
        A function `loss(scores, targets, *args, **kwargs)` of arrays `[..., n]`; the leading
        axes are batches, the further arguments go to `max_fun` as they are.

    Example:
        >>> loss = make_fenchel_young_loss(jnp.max)
        >>> print(loss(jnp.array([3.0, 1.0]), jnp.array([0.0, 1.0])))
        2.0
    """
    dot = jnp.vectorize(jnp.vdot, signature="(n),(n)->()")

    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> Array:
        def maximum(vector: Array) -> ArrayLike:
            return max_fun(vector, *args, **kwargs)

        scores, targets = jnp.asarray(scores), jnp.asarray(targets)
        return jnp.vectorize(maximum, signature="(n)->()")(scores) - dot(targets, scores)

    return fenchel_young_loss
