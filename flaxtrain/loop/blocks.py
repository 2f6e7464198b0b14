"""Batches stacked for one call, and the calls that are made of them.

A block ends where somebody has to look at the state: at a log point, an evaluation, a save, the
end of the run. Batches that are missing then are copies of the last one, and are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from flaxtrain.data import HostBatch
from flaxtrain.data.prefetch import source_error
from flaxtrain.errors import BatchError
from flaxtrain.loop.in_flight import Dispatched, DispatchedBlock, DispatchedCall
from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.loop.steps_per_call import CallForm, next_stop
from flaxtrain.train import TrainState
from flaxtrain.typing import Array, Batch

__all__ = ["Block", "Blocks", "Call", "Made", "OneStep", "SeveralSteps"]


class Made(NamedTuple):
    """What a call returns, on the device.

    Attributes:
        state: the state after its last step.
        window: the metrics so far.
        status: where the device is after the last step.
        statuses: where it is after each step.
    """

    state: TrainState
    window: Any
    status: Array
    statuses: Array


class OneStep(NamedTuple):
    """A call of the compiled training step that makes one step.

    Attributes:
        batch: the batch.
        data: what the step gets of it.
        mask: the mask of its real rows, or None.
    """

    batch: HostBatch
    data: Batch
    mask: Any

    @property
    def steps(self) -> int:
        """One."""
        return 1

    @property
    def examples(self) -> int:
        """Number of real rows."""
        return self.batch.count

    @property
    def shapes(self) -> tuple[Batch, Any]:
        """Batch and mask."""
        return self.data, self.mask

    def make(self, program: TrainProgram, state: TrainState, window: Any, last: Array) -> Made:
        """Makes the step: dispatches it, and waits for nothing."""
        state, window, status = program.step(state, window, self.data, self.mask, last)
        return Made(state, window, status, status)

    def record(
        self, number: int, places: Sequence[tuple[int, int]], statuses: Array
    ) -> DispatchedCall:
        """Returns what is kept until the step is known to be done.

        The batch is kept without its features: it is to be of use later, and runs again to the
        same bits.

        Args:
            number: of the batch in the run.
            places: the epoch of each batch, and its place there.
            statuses: as in `Made`.
        """
        return Dispatched(number, *places[0], self.batch.data, self.mask, statuses)


@dataclass(frozen=True)
class Block:
    """Some batches, stacked.

    Attributes:
        batch: every leaf `[call_form.steps, rows, ...]`.
        masked: whether the mask is given to the step.
        counts: the number of real rows in each batch; of those that are copies, none.
        call_form: what it is stacked for.
    """

    batch: HostBatch
    masked: bool
    counts: tuple[int, ...]
    call_form: CallForm


class SeveralSteps(NamedTuple):
    """A call that makes the steps of a block, or of a part of it.

    Attributes:
        block: the block.
        data: what the steps get of it.
        first: the first batch that is used.
        stop: the one behind the last.
    """

    block: Block
    data: Batch
    first: int
    stop: int

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.first

    @property
    def examples(self) -> int:
        """Number of real rows in the batches."""
        return sum(self.block.counts[self.first : self.stop])

    @property
    def mask(self) -> Any:
        """The masks of the real rows, `[call_form.steps, rows]`, or None."""
        return self.block.batch.mask if self.block.masked else None

    @property
    def shapes(self) -> tuple[Batch, Any]:
        """Shapes and dtypes of one batch and its mask."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
            (self.data, self.mask),
        )

    def make(self, program: TrainProgram, state: TrainState, window: Any, last: Array) -> Made:
        """Makes the steps: dispatches them, and waits for nothing."""
        step = program.block(self.block.call_form)
        span = np.array([self.first, self.stop], "int32")
        return Made(*step(state, window, self.data, self.mask, last, span))

    def record(
        self, number: int, places: Sequence[tuple[int, int]], statuses: Array
    ) -> DispatchedCall:
        """Returns what is kept until the steps are known to be done; as for `OneStep`."""
        data = self.block.batch.data
        return DispatchedBlock(number, self.first, tuple(places), data, self.mask, statuses)


Call: TypeAlias = OneStep | SeveralSteps
"""A call of the compiled training step."""


class Blocks:
    """Batches on their way to the loop: one by one, or stacked.

    Args:
        call_form: how many steps a call makes. It may be set anew at any time.
        cadences: at multiples of these numbers of batches a block ends.
        number: number of the next batch in the run, from 0.
        masked: whether masks are given to the step.
        check: refuses a batch that can't be used.
    """

    def __init__(
        self,
        call_form: CallForm,
        cadences: Sequence[int],
        number: int,
        masked: bool,
        check: Callable[[HostBatch], Any],
    ) -> None:
        self.call_form = call_form
        self._cadences, self._number, self._read = tuple(cadences), number, 0
        self._masked, self._check = masked, check

    def of(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch | Block]:
        """Yields single batches as long as a call makes one step, and blocks from then on.

        Raises:
            DataError: a batch can't be used; those before it have been yielded.
            BatchError: batches of one call are not alike.
        """
        while True:
            call_form = self.call_form
            wanted = min(call_form.steps, next_stop(self._number, self._cadences))
            found, failure = [], None
            try:
                while len(found) < wanted and (batch := next(batches, None)) is not None:
                    if call_form.steps > 1:
                        self._check(batch)
                    found.append(batch)
            except Exception as error:
                failure = source_error(error, f"batch {self._read + len(found)}")
            self._number, self._read = self._number + len(found), self._read + len(found)
            if call_form.steps == 1:
                yield from found
            elif found:
                yield self._stacked(found, call_form)
            if failure is not None:
                raise failure
            if len(found) < wanted:
                return

    def _stacked(self, batches: list[HostBatch], call_form: CallForm) -> Block:
        # The count is static, and may differ.
        alike = [replace(batch, count=0) for batch in batches]
        try:
            stacked = jax.tree.map(lambda *leaves: _filled(leaves, call_form.steps), *alike)
        except ValueError as error:
            first = self._number - len(batches)
            raise BatchError(
                f"the batches of one call are not alike: {error}",
                where=f"batches {first} to {self._number - 1} of the run",
                fix="make every batch like the first: the same names, shapes and dtypes",
            ) from error
        return Block(stacked, self._masked, tuple(batch.count for batch in batches), call_form)


def _filled(leaves: Sequence[Any], length: int) -> np.ndarray:
    """Returns arrays as one, with copies of the last one up to a length."""
    shape, dtype = leaves[0].shape, leaves[0].dtype
    filled = np.empty((length, *shape), dtype)
    for index, leaf in enumerate(leaves):
        # An assignment would broadcast and cast.
        if leaf.shape != shape or leaf.dtype != dtype:
            raise ValueError(f"{leaf.dtype}{list(leaf.shape)} behind {dtype}{list(shape)}")
        filled[index] = leaf
    filled[len(leaves) :] = leaves[-1]
    return filled
