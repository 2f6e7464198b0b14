"""Adadelta in NumPy float64, from Zeiler 2012, Algorithm 1: one array, one loop.

RMS[y] = sqrt(E[y^2] + eps), dx = -RMS[dx] / RMS[g] g, x <- x + dx, here times a learning rate
(which the paper does not have) that does not enter E[dx^2]. Decay is part of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adadelta(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    of_g = of_dx = np.zeros(x.shape)
    for step, g in enumerate(gradients):
        g = g + weight_decay(step) * x
        of_g = of_g + (1 - rho) * (abs(g) ** 2 - of_g)
        dx = -(((of_dx + eps) / (of_g + eps)) ** 0.5) * g
        of_dx = of_dx + (1 - rho) * (abs(dx) ** 2 - of_dx)
        x = x + learning_rate(step) * dx
        path.append(x)
    return np.stack(path)
