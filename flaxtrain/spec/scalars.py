"""Named scalars that travel in one array.

Each array that a compiled step takes and returns costs a microsecond or two, and an optimizer
like AdamW has eight numbers: one by one they were 1.6% of a small model's step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from flaxtrain.optim import DecayRate
from flaxtrain.typing import Array

__all__ = ["Scalars", "Value"]

Value: TypeAlias = Array | DecayRate
"""A number as a state holds it: a float scalar, or a decay b with 1 - b."""


@struct.dataclass(eq=False)
class Scalars(Mapping[str, Value]):
    """A mapping from names to float scalars, one leaf of a tree in all.

    Attributes:
        packed: float[n], the numbers in order; a decay takes two places, b and 1 - b.
        names: the name of each number, and whether it is a decay.

    Example:
        >>> scalars = Scalars.of({"eps": jnp.float32(0.5), "b1": DecayRate.of(0.75)})
        >>> print(scalars["eps"], scalars["b1"].complement, scalars.packed)
        0.5 0.25 [0.5  0.75 0.25]
    """

    packed: Array
    names: tuple[tuple[str, bool], ...] = struct.field(pytree_node=False)

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Scalars:
        """Packs scalars, all of one float dtype."""
        leaves = jax.tree.leaves([values[name] for name in values])
        packed = jnp.stack(leaves) if leaves else jnp.zeros(0)
        return cls(
            packed, tuple((name, isinstance(v, DecayRate)) for name, v in values.items())
        )

    def __getitem__(self, name: str) -> Value:
        index = 0
        for known, is_decay in self.names:
            if known == name:
                first = self.packed[index]
                return DecayRate(first, self.packed[index + 1]) if is_decay else first
            index += 1 + is_decay
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.names)

    def __len__(self) -> int:
        return len(self.names)
