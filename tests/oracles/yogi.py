"""Yogi in NumPy float64, from Zaheer et al. 2018, Algorithm 2: one array, one loop.

With bias corrections, and with the first moment starting where the second one does; the paper
has neither. A correction is the running sum of the weights of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def yogi(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    start: float = 1e-6,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, v = np.full_like(x, start), np.full(x.shape, start)
    weight_m = weight_v = 0.0
    for step, g in enumerate(gradients):
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        square = abs(g) ** 2
        v = np.where(square > v, v + (1 - b2) * square, v - (1 - b2) * square)
        weight_v = weight_v + (1 - b2) * (1 - weight_v)
        x = x - learning_rate(step) * (m / weight_m) / (np.sqrt(v / weight_v + eps_root) + eps)
        path.append(x)
    return np.stack(path)
