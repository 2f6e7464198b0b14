"""Rprop in NumPy float64, from Igel & Huesken 2003, iRprop-: entry by entry, in Python.

The paper's loop, with its `if`, `elif`, `else`; a step is taken one call after the gradient it
came from, and not at all if the sign has changed then. A complex entry is two entries. A decay
is decoupled and scaled by the learning rate, which is where step sizes begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def rprop(
    x: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: Callable[[int], float],
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    smallest: float = 1e-6,
    largest: float = 50.0,
    weight_decay: Callable[[int], float] = lambda step: 0.0,
) -> np.ndarray:
    """Returns the parameters after each step, with the steps in front."""
    if np.iscomplexobj(x):
        parts = ((x.real, gradients.real), (x.imag, gradients.imag))
        real, imag = (
            rprop(
                part,
                part_of_gradients,
                learning_rate=learning_rate,
                eta_minus=eta_minus,
                eta_plus=eta_plus,
                smallest=smallest,
                largest=largest,
                weight_decay=weight_decay,
            )
            for part, part_of_gradients in parts
        )
        return real + 1j * imag

    shrink = learning_rate(0) * weight_decay(0)

    def one(entry: float, slopes: Iterable[float]) -> list[float]:
        path, size, stored = [], learning_rate(0), 0.0
        for slope in slopes:
            if slope > 0 < stored or slope < 0 > stored:
                size, move = min(size * eta_plus, largest), stored
                stored = size if slope > 0 else -size
            elif slope > 0 > stored or slope < 0 < stored:
                size, move, stored = max(size * eta_minus, smallest), 0.0, 0.0
            else:
                move, stored = stored, size * ((slope > 0) - (slope < 0))
            entry -= move + shrink * entry
            path.append(entry)
        return path

    columns = gradients.reshape(len(gradients), -1).T
    paths = [one(float(entry), column) for entry, column in zip(np.ravel(x), columns.tolist())]
    return np.array(paths).T.reshape(gradients.shape)
