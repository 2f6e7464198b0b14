"""The steps that were dispatched and are not known to be finished, with their batches.

The status of a step, a few integers, is on its way to the host from the moment of the dispatch,
and read when the loop waits for that step anyway.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxtrain.loop.window import IN_FLIGHT, Status
from flaxtrain.typing import Array, Batch

__all__ = ["Dispatched", "InFlight"]


class Dispatched(NamedTuple):
    """A step that was dispatched.

    Attributes:
        number: of its batch in the run, from 0.
        epoch: in which the batch came.
        place: of the batch in its epoch, from 0.
        data: the batch, as the step got it.
        mask: the mask of its real rows, or None.
        status: where the device is after the step; on the device.
    """

    number: int
    epoch: int
    place: int
    data: Batch
    mask: Any
    status: Array


class InFlight:
    """The last few steps; a step that halts the run is found while its batch is still held.

    Example:
        >>> import jax.numpy as jnp
        >>> steps, halted = InFlight(), None
        >>> for number in range(20):
        ...     status = jnp.array([min(number, 7), number, 0, 0, int(number >= 7)])
        ...     halted = halted or steps.add(Dispatched(number, 0, number, {}, None, status))
        ...     if halted:
        ...         break
        >>> halted.number, number
        (7, 15)
    """

    def __init__(self) -> None:
        self._steps: deque[Dispatched] = deque()
        # In the memory of the host already: a copy would cost 4 us a step.
        self._is_on_host = jax.default_backend() == "cpu"

    def add(self, step: Dispatched) -> Dispatched | None:
        """Adds a step; waits for the oldest one if there are too many.

        Returns:
            The step that has halted the run, if that is known now.
        """
        if not self._is_on_host:
            step.status.copy_to_host_async()
        self._steps.append(step)
        return self._oldest() if len(self._steps) > IN_FLIGHT else None

    def settle(self) -> Dispatched | None:
        """Waits for all steps; returns the one that has halted the run, or None."""
        while self._steps:
            if (halted := self._oldest()) is not None:
                return halted
        return None

    def _oldest(self) -> Dispatched | None:
        step = self._steps.popleft()
        if not np.asarray(step.status)[_HALTED]:
            return None
        self._steps.clear()
        return step


_HALTED = Status._fields.index("halted")
