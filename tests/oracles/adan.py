"""Adan in NumPy float64, from Xie et al. 2022, Algorithm 1: one array, one loop.

In the paper's own betas (one minus the decays). All differences are formed beforehand, and the
corrections are running sums of weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def adan(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    betas: tuple[float, float, float] = (0.02, 0.08, 0.01),
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    difference_weight: float | None = None,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    w = (
        betas[1] if difference_weight is None else difference_weight
    )  # 1 - betas[1] in the paper
    x, path = np.array(x), []
    differences = np.concatenate([np.zeros_like(gradients[:1]), np.diff(gradients, axis=0)])
    moments = [np.zeros_like(x), np.zeros_like(x), np.zeros(x.shape)]
    weights = [0.0, 0.0, 0.0]
    for step, (g, d) in enumerate(zip(gradients, differences)):
        news = (g, d, abs(g + w * d) ** 2)
        moments = [m + beta * (new - m) for m, beta, new in zip(moments, betas, news)]
        weights = [w + beta * (1 - w) for w, beta in zip(weights, betas)]
        m, v, n = (moment / weight for moment, weight in zip(moments, weights))
        direction = (m + w * v) / (np.sqrt(n + eps_root) + eps)
        x = x - learning_rate(step) * (direction + weight_decay(step) * x)
        path.append(x)
    return np.stack(path)
