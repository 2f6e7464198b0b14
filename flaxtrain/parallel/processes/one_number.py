"""A number that every process measures for itself, and that all of them have to go by."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["of_process_0"]


def of_process_0(number: float) -> float:
    """Returns the number that process 0 has; all processes have to call it.

    Args:
        number: this process's own; rounded to float32 where there are several processes.

    Example:
        >>> of_process_0(0.25)
        0.25
    """
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.float32(number)))
