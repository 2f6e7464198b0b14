"""All devices of a mesh, under `jit`: XLA's partitioner finds the communication."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding

from flaxtrain.parallel.activations import keep_rows
from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.parallel.engine import Engine
from flaxtrain.parallel.global_arrays import gathered, global_batch
from flaxtrain.parallel.layout import Layout
from flaxtrain.typing import Key

__all__ = ["MeshEngine"]

T = TypeVar("T")


@lru_cache(maxsize=64)
def _moving(shardings: tuple[NamedSharding, ...]) -> Callable[[list[Any]], list[Any]]:
    """Returns what puts arrays in their places; made anew, it would be compiled anew."""
    return jax.jit(lambda leaves: leaves, out_shardings=list(shardings))


class MeshEngine(Engine):
    """All devices of a mesh, under `jit`: XLA's partitioner finds the communication.

    See `Engine` for the members.

    Args:
        layout: where each array of a state lies.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def spread(self, microbatches: T) -> T:
        """Spreads the rows of each microbatch over all devices.

        The rows of a batch lie in order: without this, the first microbatch would lie on the
        first devices, and the others would wait.
        """
        sharding = self.layout.batch(stacked=True)
        return jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), microbatches
        )

    def keep_rows(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Keeps rows on their devices: parameters that are split come to them."""
        return keep_rows(self.layout, rngs)

    def as_rows(self, batch: T, *, microbatches: int) -> T:
        """Returns the batch, of several processes on the host."""
        return self.readable(batch)

    def readable(self, tree: T) -> T:
        """Returns arrays that this process can read; where it is not alone, on the host."""
        return tree if jax.process_count() == 1 else gathered(tree)

    def describe(self) -> str:
        """Returns the axes of the mesh and the sharding."""
        axes = ", ".join(f"{name}={size}" for name, size in self.layout.mesh.shape.items())
        return f"{self.layout.sharding.kind} on a mesh {axes}"

    def make_state(self, make: Callable[[], T]) -> T:
        """Returns what `make` returns, made in its layout."""
        shardings = self.layout.state(jax.eval_shape(make))
        return jax.jit(make, out_shardings=shardings)()

    def place_state(self, state: T) -> T:
        """Returns the state in its layout."""
        shardings = self.layout.state(state)
        if jax.process_count() == 1 or not jax.tree.leaves(state):
            return jax.device_put(state, shardings)
        leaves, structure = jax.tree.flatten(state)
        wanted = jax.tree.leaves(shardings)
        if [getattr(leaf, "sharding", None) for leaf in leaves] == wanted:
            return state
        # What is on the host is the same in all processes; each takes what its devices hold.
        return structure.unflatten(_moving(tuple(wanted))(leaves))

    def _place(self, batch: T, *, stacked: bool = False) -> T:
        sharding = self.layout.batch(stacked=stacked)
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return global_batch(batch, sharding)

    def _compiled(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...] = (),
        stacked: bool = False,
    ) -> Compiled:
        def laid_out(*args: Any) -> Any:
            result = function(*args)
            return jax.lax.with_sharding_constraint(result, self.layout.state(result))

        return compiled(laid_out, donate=donate, place=partial(self._place, stacked=stacked))

    def compiled(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Compiled:
        """Returns the function compiled; what is no part of a state is replicated."""
        return self._compiled(function, donate)

    def compiled_step(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...],
        rows: tuple[int, ...],
        *,
        microbatches: int = 1,
        stacked: bool = False,
    ) -> Compiled:
        """Returns the function compiled; XLA's partitioner does the rest."""
        return self._compiled(function, donate, stacked)

    def compiled_rows(self, function: Callable[..., Any]) -> Compiled:
        """Returns the function compiled; XLA chooses where its result lies."""
        return compiled(function, place=self._place)
