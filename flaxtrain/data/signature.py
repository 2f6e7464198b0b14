"""What the batches of one data set have in common, so that one compiled program serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxtrain.tree import named_leaves
from flaxtrain.typing import HostTree

__all__ = []  # for the other modules of this room


@dataclass(frozen=True)
class Signature:
    """Structure, names, shapes without the batch axis, and dtypes; and the number of rows.

    Example:
        >>> first = Signature.of({"x": np.ones((4, 8))})
        >>> print(first.difference(Signature.of({"x": np.ones((4, 9))})))
        x has rows of shape (9,), in the first batch (8,)
    """

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    names: tuple[str, ...]
    rows: int

    @classmethod
    def of(cls, batch: HostTree) -> Signature:
        """Returns the signature of a batch of numpy arrays."""
        leaves, structure = jax.tree_util.tree_flatten(batch)
        names = tuple(name or "the batch" for name, _ in named_leaves(batch))
        shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)
        return cls(structure, shapes, names, leaves[0].shape[0])

    def difference(self, found: Signature) -> str | None:
        """Says how a later batch differs from the first, None if it doesn't."""
        if found.structure != self.structure:
            return self._structural(found)
        for name, (shape, dtype), (new_shape, new_dtype) in zip(
            self.names, self.leaves, found.leaves, strict=True
        ):
            if new_shape != shape:
                return f"{name} has rows of shape {new_shape}, in the first batch {shape}"
            if new_dtype != dtype:
                return f"{name} has dtype {new_dtype}, in the first batch {dtype}"
        if found.rows > self.rows:
            return (
                f"the batch has {found.rows} rows, more than the first, which has {self.rows}"
            )
        return None

    def _structural(self, found: Signature) -> str:
        missing = [name for name in self.names if name not in found.names]
        extra = [name for name in found.names if name not in self.names]
        if not missing and not extra:
            return f"the batch is nested as {found.structure}, the first as {self.structure}"
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [
            f"adds {', '.join(extra)}"
        ] * bool(extra)
        return f"the batch {' and '.join(parts)}; the first has {', '.join(self.names)}"
