"""Gradient descent behind a change of the gradient, in NumPy float64: what bounds, centres or
normalises.

Pascanu, Mikolov & Bengio 2012 (the joint norm), Shazeer & Stern 2018 (root mean squares), Brock
et al. 2021 (units), Yong et al. 2020 (means), You, Gitman & Ginsburg 2017 (the trust ratio).
What is too long is shortened to a length, as a unit vector times that length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From a gradient and its parameter to the changed gradient."""


def descent(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    change: Change,
    momentum: float = 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    memory = np.zeros_like(x)
    for step, g in enumerate(gradients):
        memory = momentum * memory + change(g, x)
        x = x - learning_rate(step) * memory
        path.append(x)
    return np.stack(path)


def length(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(x)))


def shortened(g: np.ndarray, limit: float) -> np.ndarray:
    return g / length(g) * limit if length(g) > limit else g


def bounded_entries(bound: float) -> Change:
    return lambda g, x: g / np.maximum(1.0, abs(g) / bound)


def bounded_rms(bound: float) -> Change:
    return lambda g, x: shortened(g, bound * np.size(g) ** 0.5)


def bounded_units(share: float, floor: float) -> Change:
    """Units are columns of matrices, outputs of kernels, and whole vectors."""

    def change(g: np.ndarray, x: np.ndarray) -> np.ndarray:
        outputs = np.shape(g)[-1] if np.ndim(g) > 1 else 1
        units, params = np.reshape(g, (-1, outputs)).T, np.reshape(x, (-1, outputs)).T
        limits = [share * max(length(unit), floor) for unit in params]
        rows = [shortened(unit, limit) for unit, limit in zip(units, limits)]
        return np.stack(rows, axis=1).reshape(np.shape(g))

    return change


def centred(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Takes the mean over everything that belongs to one entry of the first axis."""
    if np.ndim(g) < 2:
        return g
    return np.stack([entry - entry.sum() / entry.size for entry in g])


def trusted(floor: float, coefficient: float, eps: float) -> Change:
    def change(g: np.ndarray, x: np.ndarray) -> np.ndarray:
        return coefficient * g * (max(length(x), floor) / (max(length(g), floor) + eps))

    return change


def in_proportion(inner: Change, floor: float) -> Change:
    """The change `inner`, then a product with the norm of the parameter."""
    return lambda g, x: inner(g, x) * max(length(x), floor)


def jointly(
    params: Any, gradients: Any, *, factor: Callable[[float], float], rate: float = 1e-2
) -> Any:
    """Returns a tree of paths: each step is the gradient times the rate and a factor that
    depends on the joint norm of all arrays."""
    leaves, structure = jax.tree.flatten(gradients)
    vectors = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    factors = np.array([rate * factor(length(vector)) for vector in vectors])
    paths = [
        x - np.cumsum(factors.reshape(-1, *[1] * np.ndim(x)) * g, axis=0)
        for x, g in zip(jax.tree.leaves(params), leaves)
    ]
    return jax.tree.unflatten(structure, paths)
