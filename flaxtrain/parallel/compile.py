"""Compilation of step functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Compiled", "compiled"]


class Compiled:
    """A jitted function that counts how often it was traced, that is, compiled.

    Args:
        function: a pure function of pytrees.
        donate: positions of the arguments whose buffers the result may reuse.

    Attributes:
        compilations: number of times that `function` was traced.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> None:
        self.compilations = 0
        self._function = function
        self._jitted = jax.jit(self._traced, donate_argnums=donate)

    def _traced(self, *args: Any) -> Any:
        self.compilations += 1
        return self._function(*args)

    def __call__(self, *args: Any) -> Any:
        """Runs the function; compiles it first for shapes that it has not seen."""
        return self._jitted(*args)


def compiled(function: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> Compiled:
    """Returns `function` compiled, with the buffers of the arguments `donate` reused.

    Example:
        >>> double = compiled(lambda x: 2 * x)
        >>> double(1.0), double(2.0), double.compilations
        (Array(2., dtype=float32, weak_type=True), Array(4., dtype=float32, weak_type=True), 1)
    """
    return Compiled(function, donate)
