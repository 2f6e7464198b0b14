"""Where programs run: on one device, or on all devices of a mesh.

An engine places batches and states, and compiles functions so that what they return lies where
it lay before. The functions know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.typing import Key

__all__ = ["ONE_DEVICE", "Engine", "OneDevice"]

T = TypeVar("T")


@runtime_checkable
class Engine(Protocol):
    """What the loop asks of the devices."""

    @property
    def axis_name(self) -> str | None:
        """The axis over which a training step has to add up; None: it sees whole batches."""
        ...

    def spread(self, microbatches: T) -> T:
        """Spreads the rows of each microbatch over all devices; called within a step.

        Args:
            microbatches: arrays `[microbatches, rows, ...]`.
        """
        ...

    def keep_rows(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns the context in which a model runs in a program that sees whole batches.

        Args:
            rngs: the random streams of the model; the context has streams to add to them.
        """
        ...

    def part(self, batch: T) -> T:
        """Returns what one program sees of a placed batch; for shapes only."""
        ...

    def whole(self, batch: T, *, parts: int) -> T:
        """Returns a placed batch as `[rows, ...]` again, for this process to read.

        Args:
            batch: what the `place` of a training step has returned.
            parts: number of microbatches in it.
        """
        ...

    def local(self, tree: T) -> T:
        """Returns arrays that this process can read; all processes call it."""
        ...

    def describe(self) -> str:
        """Returns what differs from one device, as text; empty where nothing does."""
        ...

    def made(self, make: Callable[[], T]) -> T:
        """Returns a state, laid out as it is made: no device has to hold all of it.

        Args:
            make: makes the state; a pure function.
        """
        ...

    def put(self, state: T) -> T:
        """Returns a state in its layout, moved where it is not."""
        ...

    def compiled(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Compiled:
        """Returns a function compiled; what it returns of a state lies where states lie.

        Args:
            function: a pure function.
            donate: positions of the arguments whose buffers the result may reuse.
        """
        ...

    def compiled_step(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...],
        rows: tuple[int, ...],
        *,
        parts: int = 1,
        stacked: bool = False,
    ) -> Compiled:
        """Returns a training step compiled.

        Args:
            function: a pure function.
            donate: as for `compiled`.
            rows: positions of the arguments with rows, which its `place` has placed.
            parts: number of microbatches in a batch.
            stacked: whether their leaves are `[batches, rows, ...]`.
        """
        ...

    def compiled_rows(self, function: Callable[..., Any]) -> Compiled:
        """Returns a function compiled whose result has rows, as the batch has."""
        ...


class OneDevice:
    """The default device. See `Engine` for the members."""

    @property
    def axis_name(self) -> None:
        """There are no other devices."""
        return None

    def spread(self, microbatches: T) -> T:
        """Returns the microbatches."""
        return microbatches

    def keep_rows(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns a context in which nothing happens."""
        return nullcontext({})

    def part(self, batch: T) -> T:
        """Returns the batch."""
        return batch

    def whole(self, batch: T, *, parts: int) -> T:
        """Returns the batch."""
        return batch

    def local(self, tree: T) -> T:
        """Returns the tree."""
        return tree

    def describe(self) -> str:
        """Returns an empty text."""
        return ""

    def made(self, make: Callable[[], T]) -> T:
        """Returns what `make` returns."""
        return make()

    def put(self, state: T) -> T:
        """Returns the state."""
        return state

    def compiled(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Compiled:
        """Returns the function compiled."""
        return compiled(function, donate=donate)

    def compiled_step(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...],
        rows: tuple[int, ...],
        *,
        parts: int = 1,
        stacked: bool = False,
    ) -> Compiled:
        """Returns the function compiled."""
        return compiled(function, donate=donate)

    def compiled_rows(self, function: Callable[..., Any]) -> Compiled:
        """Returns the function compiled."""
        return compiled(function)


ONE_DEVICE = OneDevice()
"""The default device."""
