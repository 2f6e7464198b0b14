"""LAMB, LARS and Fromage in NumPy float64, from the papers: one array, one loop.

You et al. 2019, Algorithm 2; You, Gitman & Ginsburg 2017, Algorithm 1 with the norm of the
decayed gradient; Bernstein et al. 2020, Algorithm 1. Updates are formed as unit vectors times
lengths, and LAMB's corrections as running sums of weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rate = Callable[[int], float]


def length(x: np.ndarray, floor: float = 0.0) -> float:
    return max(float(np.sqrt(np.vdot(x, x).real)), floor)


def along(u: np.ndarray, x: np.ndarray, eps: float = 0.0) -> np.ndarray:
    """Returns the vector with the direction of `u` and the length of `x`; `u` if one is 0."""
    if length(x) == 0 or length(u) == 0:
        return u
    return u / (length(u) + eps) * length(x)


def lamb(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: Rate = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    m, v = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_v = 0.0  # total weight of the past in m and v: 1 - b^t
    for step, g in enumerate(gradients):
        m, weight_m = m + (1 - b1) * (g - m), weight_m + (1 - b1) * (1 - weight_m)
        v, weight_v = v + (1 - b2) * (abs(g) ** 2 - v), weight_v + (1 - b2) * (1 - weight_v)
        r = m / weight_m / (np.sqrt(v / weight_v) + eps)
        x = x - learning_rate(step) * along(r + weight_decay(step) * x, x)
        path.append(x)
    return np.stack(path)


def lars(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Rate,
    weight_decay: Rate = lambda step: 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    trusted: bool = True,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front. What is not `trusted`
    has no learning rate of its own."""
    x, path = np.array(x), []
    v = np.zeros_like(x)
    for step, g in enumerate(gradients):
        u = g + weight_decay(step) * x
        local = learning_rate(step) * (trust_coefficient * along(u, x, eps) if trusted else u)
        v = momentum * v + local
        x = x - (local + momentum * v if nesterov else v)
        path.append(x)
    return np.stack(path)


def fromage(
    x: np.ndarray, gradients: np.ndarray, *, learning_rate: Rate, min_norm: float = 1e-6
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    for step, g in enumerate(gradients):
        eta = learning_rate(step)
        moved = x - eta * length(x, min_norm) * (g / length(g, min_norm))
        x = moved / np.hypot(1.0, eta)
        path.append(x)
    return np.stack(path)
