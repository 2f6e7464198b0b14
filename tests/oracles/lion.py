"""Lion in NumPy float64, from Chen et al. 2023, Algorithm 2: one array, one loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def hard(c: np.ndarray) -> np.ndarray:
    size = np.abs(c)
    return np.divide(c, size, out=np.zeros_like(c), where=size > 0)


def refined(c: np.ndarray) -> np.ndarray:
    return c / np.maximum(np.abs(c), 1.0)


def lion(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.99,
    sign: Callable[[np.ndarray], np.ndarray] = hard,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m = np.zeros_like(x)
    for step, g in enumerate(gradients):
        direction = sign(g + b1 * (m - g))
        x = x - learning_rate(step) * (direction + weight_decay(step) * x)
        m = m + (1 - b2) * (g - m)
        path.append(x)
    return np.stack(path)
