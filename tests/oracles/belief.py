"""AdaBelief in NumPy float64, from Zhuang et al. 2020, Algorithm 2: one array, one loop.

s is the paper's second moment. Corrections are running sums of weights, not powers. The look
ahead is that of Dozat 2016 with a constant mu, as in the oracle of Adam.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adabelief(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    nesterov: bool = False,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, s = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_s = 0.0
    for step, g in enumerate(gradients):
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        s = s + (1 - b2) * (abs(g - m) ** 2 - s) + eps_root
        weight_s = weight_s + (1 - b2) * (1 - weight_s)
        ahead = m / weight_m
        if nesterov:
            next_weight = weight_m + (1 - b1) * (1 - weight_m)
            ahead = b1 * m / next_weight + (1 - b1) * g / weight_m
        x = x - learning_rate(step) * ahead / (np.sqrt(s / weight_s) + eps)
        path.append(x)
    return np.stack(path)
