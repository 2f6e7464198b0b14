"""Adamax in NumPy float64, from Kingma & Ba 2014, Algorithm 2: one array, one loop.

At every step the maximum is taken over the whole past, u_t = max_i b2^(t-i) (|g_i| + eps).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adamax(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, weight = np.zeros_like(x), 0.0
    sizes = abs(gradients) + eps
    for step, g in enumerate(gradients):
        m, weight = m + (1 - b1) * (g - m), weight + (1 - b1) * (1 - weight)
        ages = np.arange(step, -1, -1).reshape(-1, *[1] * x.ndim)
        u = np.max(sizes[: step + 1] * b2**ages, axis=0)
        x = x - learning_rate(step) * (m / weight / u + weight_decay(step) * x)
        path.append(x)
    return np.stack(path)
