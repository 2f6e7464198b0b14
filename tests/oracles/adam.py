"""Adam in NumPy float64, from the papers: one array, one loop.

Kingma & Ba 2014, Algorithm 1; Dozat 2016, Algorithm 2 with a constant mu (and without its
factor on the second moment); Loshchilov & Hutter 2017, Algorithm 2 with the decay scaled by
the learning rate. Averages are formed as sums of weighted gradients over the whole past would
give them: each correction is a running sum of weights, not a power, so that it shares no
formula with the code under test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adam(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, v = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_v = 0.0  # total weight of the past in m and v: 1 - b^t
    for step, g in enumerate(gradients):
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        v, weight_v = v + (1 - b2) * (abs(g) ** 2 - v), weight_v + (1 - b2) * (1 - weight_v)
        if nesterov:
            next_weight = weight_m + (1 - b1) * (1 - weight_m)
            ahead = b1 * m / next_weight + (1 - b1) * g / weight_m
        else:
            ahead = m / weight_m
        direction = ahead / (np.sqrt(v / weight_v + eps_root) + eps)
        x = x - learning_rate(step) * (direction + weight_decay(step) * x)
        path.append(x)
    return np.stack(path)
