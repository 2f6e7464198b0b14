"""Adafactor in NumPy float64, from the paper: one array, one loop.

Shazeer & Stern 2018, Algorithms 1 to 4, with sums (not means) of rows and columns, and the
second moment written out as the rank-one matrix that these stand for. Learning rates are given
(no warm-up of its own); momentum and decay come behind the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rate = Callable[[int], float]


def adafactor(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Rate,
    smallest: int | None = 128,
    decay: Callable[[int], float] = lambda t: 1 - t**-0.8,
    threshold: float | None = 1.0,
    relative: bool = True,
    momentum: float | None = None,
    weight_decay: Rate = lambda step: 0.0,
    epsilon: float = 1e-30,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front. `smallest`: the least
    second-longest axis of an array that is factored; None: nothing is."""
    x, path = np.array(x), []
    second = Split(x.shape, smallest)
    memory: tuple[np.ndarray, ...] = tuple(np.zeros_like(p) for p in second.parts(abs(x)))
    m = np.zeros_like(x)
    for step, g in enumerate(gradients):
        beta = decay(step + 1)
        parts = second.parts(abs(g) ** 2 + epsilon)
        memory = tuple(beta * old + (1 - beta) * new for old, new in zip(memory, parts))
        u = g / np.sqrt(second.whole(*memory))
        if threshold is not None:
            u = u / max(1.0, rms(u) / threshold)
        u = u * (learning_rate(step) * (max(1e-3, rms(x)) if relative else 1.0))
        if momentum is not None:
            u = m = momentum * m + (1 - momentum) * u
        x = x - u - weight_decay(step) * x
        path.append(x)
    return np.stack(path)


def rms(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.ravel())) / x.size**0.5


class Split:
    """How an array of squares is split into sums of rows and columns, and put together."""

    def __init__(self, shape: tuple[int, ...], smallest: int | None) -> None:
        # The longest axis last; of equal ones the later axis counts as longer.
        order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
        is_long = len(shape) > 1 and smallest is not None and shape[order[-2]] >= smallest
        self.axes = (order[-1], order[-2]) if is_long else None

    def parts(self, squares: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.axes is None:
            return (squares,)
        return tuple(squares.sum(axis, keepdims=True) for axis in self.axes)

    def whole(self, *parts: np.ndarray) -> np.ndarray:
        if self.axes is None:
            return parts[0]
        rows, columns = parts
        return rows * columns / rows.sum(self.axes[1], keepdims=True)
