"""Values on their way to a writer: off the device, in one transfer, to plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.typing import ArrayLike

__all__ = ["as_floats", "as_numpy", "check_step"]


def as_numpy(arrays: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """Returns the arrays as numpy arrays, fetched from the device together.

    Example:
        >>> as_numpy({"x": jax.numpy.arange(2)})
        {'x': array([0, 1], dtype=int32)}
    """
    # Backends that operate on jax arrays compile a program per call, which takes seconds.
    fetched = jax.device_get(list(arrays.values()))
    return {tag: np.asarray(value) for tag, value in zip(arrays, fetched)}


def as_floats(scalars: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Returns the scalars as Python floats, fetched from the device together.

    Args:
        scalars: numbers and arrays of one element.

    Raises:
        ArgumentTypeError: a value has more than one element, or is no real number.

    Example:
        >>> as_floats({"loss": np.float32(0.5), "step": 3})
        {'loss': 0.5, 'step': 3.0}
    """
    floats = {}
    for tag, value in as_numpy(scalars).items():
        if value.size != 1 or not (np.isrealobj(value) and _is_number(value)):
            raise ArgumentTypeError(
                f"the scalar {tag!r} has shape {value.shape} and dtype {value.dtype}",
                where="write_scalars",
                fix="write one real number per tag, and arrays with write_histograms",
            )
        floats[tag] = float(value.reshape(()))
    return floats


def _is_number(value: np.ndarray) -> bool:
    # bfloat16 and its kin are of numpy's kind "V", which np.number does not cover.
    return value.dtype.kind in "biuf" or jax.numpy.issubdtype(value.dtype, jax.numpy.number)


def check_step(step: Any) -> int:
    """Returns the step as a Python int.

    Raises:
        ArgumentTypeError: it is not an integer.
        ArgumentError: it is negative.
    """
    check_integer("step", step, minimum=0, where="write_*(step, ...)")
    return int(step)
