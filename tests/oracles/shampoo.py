"""Shampoo in NumPy float64, from the papers: one array, one loop over steps, blocks and axes.

Gupta, Koren & Singer 2018, Algorithms 1 and 2; Anil et al. 2020 (blocks, grafting, roots every
few steps); Adam's step by Kingma & Ba 2014, Algorithm 1. Blocks are views of the array, uneven
ones included, so nothing is filled up; matrices along an axis are unfolded and multiplied as
such; averages are formed as in the oracle of Adam, with running sums of weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np


def shampoo(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    block_size: int = 256,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    ridge: float = 1e-6,
    graft: str = "adam",
    nesterov: bool = False,
    every: int = 10,
    start: int = 10,
    merge: bool = True,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    x, path = np.array(x), []
    shape = matrix_shape(x.shape, merge)
    cuts = list(corners(shape, block_size)) if len(shape) > 1 else []
    statistics: list[list[np.ndarray]] = [[] for _ in cuts]
    roots: list[list[np.ndarray]] = [[] for _ in cuts]
    m, v = np.zeros_like(x), np.zeros(x.shape)
    weight_m = weight_v = 0.0
    keep, add = (b2, 1 - b2) if b2 < 1 else (1.0, 1.0)
    for step, g in enumerate(gradients):
        m, weight_m = b1 * m + (1 - b1) * g, b1 * weight_m + (1 - b1)
        v = keep * v + add * abs(g) ** 2
        weight_v = keep * weight_v + add if b2 < 1 else 1.0
        ahead = m / weight_m
        if nesterov:
            ahead = b1 * m / (b1 * weight_m + (1 - b1)) + (1 - b1) * g / weight_m
        denominator = np.sqrt(v / weight_v) + eps
        own = {"sgd": ahead, "rmsprop": g / denominator}.get(graft, ahead / denominator)
        direction = np.zeros(shape, x.dtype)
        for i, cut in enumerate(cuts):
            block = g.reshape(shape)[cut]
            sides = [unfolded(block, axis) for axis in range(block.ndim)]
            grams = [side @ side.conj().T for side in sides]
            old = statistics[i] or [0.0 * gram for gram in grams]
            statistics[i] = [keep * a + add * b for a, b in zip(old, grams)]
            if step + 1 >= start and (step + 1 - start) % every == 0:
                power = -1 / (2 * block.ndim)
                roots[i] = [root(a / weight_v, power, ridge) for a in statistics[i]]
            if roots[i]:
                direction[cut] = along_every_axis(ahead.reshape(shape)[cut], roots[i])
        if cuts and roots[0]:
            scale = 1.0 if graft == "none" else norm(own) / norm(direction)
            own = (scale * direction).reshape(x.shape)
        x = x - learning_rate(step) * (own + weight_decay(step) * x)
        path.append(x)
    return np.stack(path)


def matrix_shape(shape: tuple[int, ...], merge: bool) -> tuple[int, ...]:
    """Axes longer than 1; three and more are put together to the most even matrix."""
    axes = [n for n in shape if n > 1]
    if not merge or len(axes) < 3:
        return tuple(axes)
    best = (0, int(np.prod(axes)))
    for i in range(1, len(axes)):
        rows, columns = int(np.prod(axes[:i])), int(np.prod(axes[i:]))
        if max(rows, columns) * min(best) <= max(best) * min(rows, columns):
            best = (rows, columns)
    return best


def corners(shape: tuple[int, ...], block_size: int) -> Iterator[tuple[slice, ...]]:
    """The blocks as slices: as few as possible along an axis, equal but for the last one."""
    pieces = []
    for length in shape:
        count = int(np.ceil(length / block_size))
        size = int(np.ceil(length / count))
        pieces.append([slice(i * size, min((i + 1) * size, length)) for i in range(count)])
    return itertools.product(*pieces)


def unfolded(block: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(block, axis, 0).reshape(block.shape[axis], -1)


def root(a: np.ndarray, power: float, ridge: float) -> np.ndarray:
    w, v = np.linalg.eigh(a)
    return sum(
        (max(value, 0.0) + ridge * w[-1]) ** power * np.outer(vector, vector.conj())
        for value, vector in zip(w, v.T)
    )


def along_every_axis(block: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    for axis, matrix in enumerate(matrices):
        moved = (matrix @ unfolded(block, axis)).reshape(
            matrix.shape[0], *np.delete(block.shape, axis)
        )
        block = np.moveaxis(moved, 0, axis)
    return block


def norm(array: np.ndarray) -> float:
    return float(np.sqrt(np.sum(abs(array) ** 2)))
