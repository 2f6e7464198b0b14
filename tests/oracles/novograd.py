"""NovoGrad in NumPy float64, from Ginsburg et al. 2019, Algorithm 1: one layer, one loop.

The velocity is kept as the plain list of what went into it, and summed with its weights b1^age
at each step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def novograd(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    layer_moment, past = None, np.zeros((len(gradients), *x.shape), x.dtype)
    for step, g in enumerate(gradients):
        energy = float(np.sum(g.real**2 + g.imag**2))
        if layer_moment is None:
            layer_moment = energy
        layer_moment = layer_moment + (1 - b2) * (energy - layer_moment)
        past[step] = g / (np.sqrt(layer_moment + eps_root) + eps) + weight_decay(step) * x
        ages = np.arange(step, -1, -1)
        x = x - learning_rate(step) * np.tensordot(b1**ages, past[: step + 1], axes=1)
        path.append(x)
    return np.stack(path)
