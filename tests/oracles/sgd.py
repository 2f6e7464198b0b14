"""Gradient descent in NumPy float64, from the formulas: one array, one loop.

Sutskever et al. 2013: v <- mu v - e g,  x <- x + v; Nesterov: the step taken from the point
that the momentum alone would reach. Written here for the velocity in units of the gradient, v
= -e m, with a learning rate that may change (it multiplies the step, not the memory).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def sgd(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    momentum: float | None = None,
    nesterov: bool = False,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    memory = np.zeros_like(x)
    for step, g in enumerate(gradients):
        if momentum is None:
            direction = g
        else:
            memory = momentum * memory + g
            direction = g + momentum * memory if nesterov else memory
        x = x - learning_rate(step) * direction
        path.append(x)
    return np.stack(path)
