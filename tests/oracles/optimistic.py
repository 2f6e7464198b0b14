"""Optimistic gradients in NumPy float64, in one expression for all steps.

Mokhtari et al. 2019, equation 14; Daskalakis et al. 2017, Algorithm 1, with Adam's directions
taken from the judge of Adam (the differences of its path at a learning rate of 1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.oracles.adam import adam


def optimistic(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    alpha: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    change = np.concatenate([0 * gradients[:1], np.diff(gradients, axis=0)])
    rates = np.array([learning_rate(step) for step in range(len(gradients))])
    rates = rates.reshape(-1, *[1] * np.ndim(x))
    return x - np.cumsum(rates * (alpha * gradients + beta * change), axis=0)


def optimistic_adam(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    alpha: float = 1.0,
    beta: float = 1.0,
    nesterov: bool = True,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    path = adam(0 * x, gradients, learning_rate=lambda step: 1.0, nesterov=nesterov)
    directions = -np.diff(np.concatenate([0 * path[:1], path]), axis=0)
    return optimistic(x, directions, learning_rate=learning_rate, alpha=alpha, beta=beta)
