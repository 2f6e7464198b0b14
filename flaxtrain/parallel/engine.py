"""Where programs run: on one device, or on all devices of a mesh.

An engine places batches and states, and compiles functions so that what they return lies where
it lay before. What a training step has to know of it are `axis_name`, `spread` and `keep_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.typing import Key

__all__ = ["ONE_DEVICE", "Engine"]

T = TypeVar("T")


class Engine:
    """What the loop asks of the devices, and the answers of the default device."""

    @property
    def axis_name(self) -> str | None:
        """The axis over which a training step has to add up; None: it sees whole batches."""
        return None

    def spread(self, microbatches: T) -> T:
        """Spreads the rows of each microbatch over all devices; called within a step.

        Args:
            microbatches: arrays `[microbatches, rows, ...]`.
        """
        return microbatches

    def keep_rows(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns the context in which a model runs in a program that sees whole batches.

        Args:
            rngs: the random streams of the model; the context has streams to add to them.
        """
        return nullcontext({})

    def seen_by_one(self, batch: T) -> T:
        """Returns what one program sees of a placed batch; for shapes only."""
        return batch

    def as_rows(self, batch: T, *, microbatches: int) -> T:
        """Returns a placed batch as `[rows, ...]` again, for this process to read.

        Args:
            batch: what the `place` of a training step has returned.
            microbatches: their number in it.
        """
        return batch

    def readable(self, tree: T) -> T:
        """Returns arrays that this process can read; all processes call it."""
        return tree

    def describe(self) -> str:
        """Returns what differs from one device, as text; empty where nothing does."""
        return ""

    def make_state(self, make: Callable[[], T]) -> T:
        """Returns a state, laid out as it is made: no device has to hold all of it.

        Args:
            make: makes the state; a pure function.
        """
        return make()

    def place_state(self, state: T) -> T:
        """Returns a state in its layout, moved where it is not."""
        return state

    def compiled(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Compiled:
        """Returns a function compiled; what it returns of a state lies where states lie.

        Args:
            function: a pure function.
            donate: positions of the arguments whose buffers the result may reuse.
        """
        return compiled(function, donate=donate)

    def compiled_step(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...],
        rows: tuple[int, ...],
        *,
        microbatches: int = 1,
        stacked: bool = False,
    ) -> Compiled:
        """Returns a training step compiled.

        Args:
            function: a pure function.
            donate: as for `compiled`.
            rows: positions of the arguments with rows, which its `place` has placed.
            microbatches: their number in a batch.
            stacked: whether the leaves of these are `[batches, rows, ...]`.
        """
        return compiled(function, donate=donate)

    def compiled_rows(self, function: Callable[..., Any]) -> Compiled:
        """Returns a function compiled whose result has rows, as the batch has."""
        return compiled(function)


ONE_DEVICE = Engine()
"""The default device."""
