"""AMSGrad in NumPy float64, from Reddi, Kale & Kumar 2018, Algorithm 2: one array, one loop.

The paper's v_hat is the largest v so far. Corrections, which the paper doesn't have, are
running sums of weights; that of v is applied before the maximum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def amsgrad(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    corrects_m: bool = True,
    corrects_v: bool = True,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, v = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_v = 0.0
    past: list[np.ndarray] = []
    for step, g in enumerate(gradients):
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        v, weight_v = v + (1 - b2) * (abs(g) ** 2 - v), weight_v + (1 - b2) * (1 - weight_v)
        past.append(v / weight_v if corrects_v else v)
        largest = np.max(past, axis=0)
        direction = m / weight_m if corrects_m else m
        x = x - learning_rate(step) * direction / (np.sqrt(largest + eps_root) + eps)
        path.append(x)
    return np.stack(path)
