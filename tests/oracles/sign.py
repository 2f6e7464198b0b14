"""Sign descent, Signum and averaged gradients in NumPy float64: one array, one loop.

Bernstein et al. 2018, Algorithms 1 and 2. An average is formed from the whole past: the weight
of the gradient k steps back is (1 - b) b^k.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def averages(gradients: np.ndarray, b: float, *, debias: bool) -> np.ndarray:
    """Returns the average of the gradients up to each step."""
    steps = np.arange(len(gradients))
    ages = steps[:, None] - steps[None, :]
    weights = np.where(ages >= 0, (1 - b) * b ** np.maximum(ages, 0), 0.0)
    if debias:
        weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, gradients, axes=1)


def sign_sgd(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    beta: float | None = None,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    directions = gradients if beta is None else averages(gradients, beta, debias=False)
    return _descend(x, directions / np.abs(directions), learning_rate)


def averaged_sgd(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    decay: float,
    debias: bool = True,
) -> np.ndarray:
    """Returns the parameters after each step along the average of the gradients."""
    return _descend(x, averages(gradients, decay, debias=debias), learning_rate)


def _descend(
    x: np.ndarray, directions: np.ndarray, learning_rate: Callable[[int], float]
) -> np.ndarray:
    rates = np.array([learning_rate(step) for step in range(len(directions))])
    return x - np.cumsum(rates.reshape(-1, *[1] * np.ndim(x)) * directions, axis=0)
