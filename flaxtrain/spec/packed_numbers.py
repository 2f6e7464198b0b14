"""The numbers of one group of parameters, in one array.

Each array that a compiled step takes and returns costs a little, whatever its size, and AdamW's
numbers would be eight. What the whole loop costs: `benchmarks/loop_overhead.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from flaxtrain.optim import DecayRate
from flaxtrain.typing import Array

__all__ = ["PackedNumbers", "Value"]

Value: TypeAlias = Array | DecayRate
"""A number as a state holds it: a float scalar, or a decay b with 1 - b."""

_NOTHING = np.zeros(0, np.float32)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class PackedNumbers(Mapping[str, Value]):
    """A mapping from names to float scalars, one leaf of a tree in all.

    The leaf's key is made of the names: in a checkpoint numbers can't be taken for others.

    Attributes:
        packed: float[..., n], the numbers in order; a decay takes two places, b and 1 - b. Axes
            in front are those of a state that was batched.
        names: the name of each number, and whether it is a decay.

    Example:
        >>> numbers = PackedNumbers.of({"eps": jnp.float32(0.5), "b1": DecayRate.of(0.75)})
        >>> print(numbers["eps"], numbers["b1"].complement, numbers.packed)
        0.5 0.25 [0.5  0.75 0.25]
        >>> numbers.key
        'eps, b1, 1 - b1'
    """

    packed: Any  # jax puts other things in its place, too
    names: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> PackedNumbers:
        """Packs numbers.

        Args:
            values: scalars and decays by name, all of one float dtype.
        """
        leaves = jax.tree.leaves([values[name] for name in values])
        packed = jnp.stack(jnp.broadcast_arrays(*leaves), axis=-1) if leaves else _NOTHING
        names = ((name, isinstance(value, DecayRate)) for name, value in values.items())
        return cls(packed, tuple(names))

    @property
    def key(self) -> str:
        """What stands at each place of the array, as text."""
        return ", ".join(f"{name}, 1 - {name}" if decay else name for name, decay in self.names)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """Returns the array with its key, if there is any number; for jax."""
        children = ((jax.tree_util.DictKey(self.key), self.packed),) if self.names else ()
        return children, self.names

    @classmethod
    def tree_unflatten(cls, names: Any, children: Any) -> PackedNumbers:
        """Returns what was flattened; for jax."""
        return cls(children[0] if names else _NOTHING, names)

    def __getitem__(self, name: str) -> Value:
        index = 0
        for known, is_decay in self.names:
            if known == name:
                first = self.packed[..., index]
                return DecayRate(first, self.packed[..., index + 1]) if is_decay else first
            index += 1 + is_decay
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.names)

    def __len__(self) -> int:
        return len(self.names)


serialization.register_serialization_state(
    PackedNumbers,
    lambda numbers: {numbers.key: numbers.packed},
    lambda numbers, state: PackedNumbers(state[numbers.key], numbers.names),
)
