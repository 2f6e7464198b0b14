"""Compilation of step functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Traced

from flaxtrain.parallel.place import place

__all__ = ["Compiled", "compiled"]


class Compiled:
    """A jitted function that counts how often it was traced, that is, compiled.

    Args:
        function: a pure function of pytrees.
        donate: positions of the arguments whose buffers the result may reuse.
        place: starts the transfer of a host batch to where the function wants it.

    Attributes:
        compilations: number of times that `function` was traced.
        place: as given.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...] = (),
        place: Callable[[Any], Any] = place,
    ) -> None:
        self.compilations, self.place = 0, place
        self._function = function
        self._jitted = jax.jit(self._traced, donate_argnums=donate)

    def _traced(self, *args: Any) -> Any:
        self.compilations += 1
        return self._function(*args)

    def __call__(self, *args: Any) -> Any:
        """Runs the function; compiles it first for shapes that it has not seen."""
        return self._jitted(*args)

    def traced(self, *args: Any) -> Traced:
        """Returns the function traced, to be looked at, lowered and compiled ahead of time.

        Under `jit` only: `jax.pmap` knows no such thing.

        Args:
            *args: arrays, or `jax.ShapeDtypeStruct` with shardings; nothing is allocated.

        Example:
            >>> import jax.numpy as jnp
            >>> double = compiled(lambda x: 2 * x)
            >>> traced = double.traced(jax.ShapeDtypeStruct((3,), jnp.float32))
            >>> traced.lower().compile().memory_analysis().output_size_in_bytes
            12
        """
        return self._jitted.trace(*args)


def compiled(
    function: Callable[..., Any],
    *,
    donate: tuple[int, ...] = (),
    place: Callable[[Any], Any] = place,
) -> Compiled:
    """Returns `function` compiled, with the buffers of the arguments `donate` reused.

    Args:
        function: as for `Compiled`.
        donate: as for `Compiled`.
        place: as for `Compiled`.

    Example:
        >>> double = compiled(lambda x: 2 * x)
        >>> double(1.0), double(2.0), double.compilations
        (Array(2., dtype=float32, weak_type=True), Array(4., dtype=float32, weak_type=True), 1)
    """
    return Compiled(function, donate, place)
