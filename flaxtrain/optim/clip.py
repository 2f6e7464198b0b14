"""Clipping by the norm of the whole gradient.

Pascanu, Mikolov & Bengio 2012, "On the difficulty of training recurrent neural networks",
arXiv:1211.5063, Algorithm 1. For all gradients g together:
    g <- g min(1, max_norm / |g|)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.transform import GradientTransformation, named, stateless
from flaxtrain.tree import global_norm
from flaxtrain.typing import ArrayLike, Params, Updates

__all__ = ["clip_by_global_norm"]


@named
def clip_by_global_norm(max_norm: ArrayLike) -> GradientTransformation:
    """Makes the transformation that bounds the joint L2 norm of all updates.

    One factor multiplies every array. NaN anywhere makes every update NaN; an infinity makes
    the entry itself NaN and all others 0.

    Args:
        max_norm: the largest L2 norm over all updates together, > 0.

    Raises:
        ArgumentError: `max_norm` is not positive and finite.
        ArgumentTypeError: `max_norm` is not a number.

    Example:
        >>> tx = clip_by_global_norm(1.0)
        >>> updates, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(None))
        >>> print(updates["w"])
        [0.6 0.8]
    """
    check_number("max_norm", max_norm, minimum=0.0, exclude=(0.0,), where="clip_by_global_norm")

    def clip(updates: Updates, params: Params | None) -> Updates:
        updates = jax.tree.map(jnp.asarray, updates)
        norm = global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda update: factor.astype(update.real.dtype) * update, updates)

    return stateless(clip)
