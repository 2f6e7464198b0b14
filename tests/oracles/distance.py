"""Layer-wise DoG in NumPy float64: Ivgi et al. 2023, with every iterate kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def dog(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    path = [np.array(x)]
    seen = [float(np.vdot(g, g).real) for g in gradients]
    far = [reps_rel * (1 + np.linalg.norm(x))]
    for step, g in enumerate(gradients):
        far.append(float(np.linalg.norm(path[-1] - path[0])))
        eta = learning_rate(step) * max(far) / np.sqrt(sum(seen[: step + 1]) + eps)
        path.append(path[-1] - eta * g)
    return np.stack(path[1:])
