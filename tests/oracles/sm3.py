"""SM3-II in NumPy float64, from Anil et al. 2019: one array, one loop.

The covers are the slices along each axis; what the covers say about an entry is laid out by
`np.ix_`, and the largest entry of a slice is found with `np.maximum.reduce`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def sm3(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    momentum: float = 0.9,
    b2: float = 1.0,
    eps: float = 1e-8,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    if np.ndim(x) == 0:  # a scalar is a vector of one entry
        options = {"momentum": momentum, "b2": b2, "eps": eps}
        vector = sm3(x[None], gradients[:, None], learning_rate=learning_rate, **options)
        return vector[:, 0]
    x, path = np.array(x), []
    mu = [np.zeros(length) for length in x.shape]
    average = np.zeros_like(x)
    gain = 1.0 if b2 == 1.0 else 1.0 - b2
    for step, g in enumerate(gradients):
        least = np.minimum.reduce(np.broadcast_arrays(*np.ix_(*mu)))
        a = b2 * least + gain * abs(g) ** 2
        mu = [
            np.maximum.reduce(np.moveaxis(a, axis, 0).reshape(length, -1), axis=1)
            for axis, length in enumerate(x.shape)
        ]
        average = average + (1 - momentum) * (g / (a + eps) ** 0.5 - average)
        x = x - learning_rate(step) * average
        path.append(x)
    return np.stack(path)
