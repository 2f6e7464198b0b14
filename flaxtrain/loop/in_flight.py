"""What was dispatched and is not known to be finished: a bounded number of steps, everywhere.

The status of a training step, a few integers, is on its way to the host from the moment of the
dispatch, and read when the loop waits for that step anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from flaxtrain.loop.window import Status
from flaxtrain.typing import Array, Batch

__all__ = [
    "IN_FLIGHT",
    "Bounded",
    "Dispatched",
    "DispatchedBlock",
    "DispatchedCall",
    "InFlight",
]

IN_FLIGHT = 8
"""Steps that may be dispatched and not yet finished. Unbounded dispatch aborts the process on a
multi-device CPU, and hides how far the device is behind. Two calls always may be, however many
steps they make: one that runs, and the next."""

T = TypeVar("T")


class Bounded(Generic[T]):
    """What was dispatched, oldest first. Whoever adds to it waits for what it hands out.

    Example:
        >>> calls = Bounded()
        >>> [list(calls.add(name, steps=4)) for name in "abc"], calls.steps
        ([[], ['a'], ['b']], 4)
        >>> list(calls.add("d", steps=32)), list(calls.add("e", steps=32)), list(calls.rest())
        (['c'], ['d'], ['e'])
    """

    def __init__(self) -> None:
        self._held: deque[tuple[T, int]] = deque()
        self.steps = 0

    def __iter__(self) -> Iterator[T]:
        """What is held, oldest first."""
        return (item for item, _ in self._held)

    def add(self, item: T, steps: int = 1) -> Iterator[T]:
        """Adds a call just dispatched; yields those to be waited for before another such one.

        Args:
            item: what can be waited for.
            steps: number of steps that it makes.
        """
        self._held.append((item, steps))
        self.steps += steps
        return self._oldest(leave=1, at_most=max(0, IN_FLIGHT - steps))

    def rest(self) -> Iterator[T]:
        """Yields all that are left."""
        return self._oldest(leave=0, at_most=0)

    def clear(self) -> None:
        """Forgets all of them."""
        self._held.clear()
        self.steps = 0

    def _oldest(self, leave: int, at_most: int) -> Iterator[T]:
        while self.steps > at_most and len(self._held) > leave:
            item, steps = self._held.popleft()
            self.steps -= steps
            yield item


class Dispatched(NamedTuple):
    """A step that was dispatched.

    Attributes:
        number: of its batch in the run, from 0.
        epoch: in which the batch came.
        place: of the batch in its epoch, from 0.
        data: the placed batch, without cached features.
        mask: the mask of its real rows, or None.
        status: where the device is after the step; on the device.
    """

    number: int
    epoch: int
    place: int
    data: Batch
    mask: Any
    status: Array

    def halting(self) -> Dispatched | None:
        """Waits for the step; returns it if it has halted the run."""
        return self if np.asarray(self.status)[_HALTED] else None


class DispatchedBlock(NamedTuple):
    """Several steps that were dispatched as one call.

    Attributes:
        number: of the first batch in the run, from 0.
        first: where that batch stands in the arrays.
        places: the epoch of each batch, and its place there.
        data: the batches, stacked.
        mask: the masks of their real rows, stacked, or None.
        status: where the device is after each step, `[steps, fields]`; on the device.
    """

    number: int
    first: int
    places: tuple[tuple[int, int], ...]
    data: Batch
    mask: Any
    status: Array

    def halting(self) -> Dispatched | None:
        """Waits for the steps; returns the first one that has halted the run, if any."""
        used = slice(self.first, self.first + len(self.places))
        halted = np.asarray(self.status)[used, _HALTED] != 0
        if not halted.any():
            return None
        index = int(np.argmax(halted))
        data, mask, status = jax.tree.map(
            lambda leaf: leaf[self.first + index], (self.data, self.mask, self.status)
        )
        place = self.places[index]
        return Dispatched(self.number + index, *place, data, mask, status)


DispatchedCall: TypeAlias = Dispatched | DispatchedBlock
"""A call that was dispatched, of one step or of several."""


class InFlight(Bounded[DispatchedCall]):
    """The last few calls; a step that halts the run is found while its batch is still held.

    Example:
        >>> import jax.numpy as jnp
        >>> steps, halted = InFlight(), None
        >>> for number in range(20):
        ...     status = jnp.array([min(number, 7), number, 0, 0, int(number >= 7)])
        ...     step = Dispatched(number, 0, number, {}, None, status)
        ...     halted = halted or steps.dispatched(step, 1)
        ...     if halted:
        ...         break
        >>> halted.number, number
        (7, 14)
    """

    def __init__(self) -> None:
        super().__init__()
        # In the memory of the host already: a copy would cost 4 us a step.
        self._is_on_host = jax.default_backend() == "cpu"

    def dispatched(self, call: DispatchedCall, steps: int) -> Dispatched | None:
        """Adds a call; waits for the oldest ones if there are too many.

        Returns:
            The step that has halted the run, if that is known now.
        """
        if not self._is_on_host:
            call.status.copy_to_host_async()
        return self._halting(self.add(call, steps))

    def settle(self) -> Dispatched | None:
        """Waits for all steps; returns the one that has halted the run, or None."""
        return self._halting(self.rest())

    def _halting(self, calls: Iterator[DispatchedCall]) -> Dispatched | None:
        for call in calls:
            if (step := call.halting()) is not None:
                self.clear()
                return step
        return None


_HALTED = Status._fields.index("halted")
