"""RAdam in NumPy float64, from Liu et al. 2019, section 4 and Algorithm 2: one array, one loop.

rho is derived as in the paper's section 4.1, not by its closed form: the length of the simple
average that has the same centre of mass as the exponential one, from running sums.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def radam(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    nesterov: bool = False,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, v = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_v = lag = 0.0  # lag: the sum of ages, each with its weight in v
    longest = 2 / (1 - b2) - 1
    for step, g in enumerate(gradients):
        lag = b2 * (lag + weight_v)
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        v, weight_v = v + (1 - b2) * (abs(g) ** 2 - v), weight_v + (1 - b2) * (1 - weight_v)
        ahead = m / weight_m
        if nesterov:
            next_weight = weight_m + (1 - b1) * (1 - weight_m)
            ahead = b1 * m / next_weight + (1 - b1) * g / weight_m
        rho = 2 * lag / weight_v + 1  # n values of equal weight have a mean age of (n - 1) / 2
        if rho >= threshold:
            variance = rho / ((rho - 2) * (rho - 4))
            least = longest / ((longest - 2) * (longest - 4))
            size = np.sqrt(v / weight_v + eps_root) + eps
            ahead = np.sqrt(least / variance) * ahead / size
        x = x - learning_rate(step) * ahead
        path.append(x)
    return np.stack(path)
