"""RMSProp in NumPy float64: one array, one loop.

Tieleman & Hinton 2012; Graves 2013, equations 38 to 41. The variance is not formed as a
difference of moments, but updated with West's formula for weighted data (1979, Communications
of the ACM 22), V <- d V + d (1 - d) |g - m|^2, and the bias correction is a running sum of
weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def rmsprop(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float = 0.0,
    nesterov: bool = False,
    corrected: bool = False,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    mean, velocity = np.zeros_like(x), np.zeros_like(x)
    second = np.full(x.shape, initial_scale)  # the second moment, or the variance
    weight = 0.0
    for step, g in enumerate(gradients):
        if centered:
            second = decay * (second + (1 - decay) * abs(g - mean) ** 2)
            mean = mean + (1 - decay) * (g - mean)
        else:
            second = second + (1 - decay) * (abs(g) ** 2 - second)
        weight = weight + (1 - decay) * (1 - weight)
        estimate = second / weight if corrected else second
        root = (estimate + eps) ** 0.5 if eps_in_sqrt else estimate**0.5 + eps
        own = -learning_rate(step) * g / root
        velocity = momentum * velocity + own
        x = x + (own + momentum * velocity if nesterov else velocity)
        path.append(x)
    return np.stack(path)
