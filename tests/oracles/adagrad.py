"""Adagrad in NumPy float64, from Duchi et al. 2011: all sums of squares at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adagrad(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    initial: float = 0.1,
    eps: float = 1e-7,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    sums = initial + np.cumsum(np.abs(gradients) ** 2, axis=0)
    rates = np.array([learning_rate(step) for step in range(len(gradients))])
    rates = rates.reshape(-1, *[1] * np.ndim(x))
    return x - np.cumsum(rates * gradients / (sums + eps) ** 0.5, axis=0)
