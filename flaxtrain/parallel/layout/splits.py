"""How one array is cut: for each of its axes, the mesh axes that it is split over."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple, TypeAlias

from jax.sharding import PartitionSpec

from flaxtrain.parallel.mesh import AnyMesh

# Nothing here is public: `Layout` is.
__all__ = []

Shape: TypeAlias = tuple[int, ...]
AxisSplits: TypeAlias = tuple[tuple[str, ...], ...]
"""For each axis of an array, the names of mesh axes."""

SMALL = "below the threshold"
UNDIVIDED = "no axis divides"
BY_RULE = "a rule leaves it whole"


def unsplit(shape: Shape) -> AxisSplits:
    """Returns the splits of an array that is not split."""
    return ((),) * len(shape)


def used(splits: AxisSplits) -> tuple[str, ...]:
    """Returns the mesh axes in use."""
    return tuple(name for names in splits for name in names)


def shards(mesh: AnyMesh, names: Iterable[str]) -> int:
    """Returns the number of devices along mesh axes."""
    return math.prod(mesh.shape[name] for name in names)


def partition_spec(mesh: AnyMesh, splits: AxisSplits) -> PartitionSpec:
    """Returns the splits as jax has them: without mesh axes of length 1, and none at the end.

    Equal layouts are then equal specs, as those are that compiled functions return.
    """
    named = [tuple(name for name in names if mesh.shape[name] > 1) for names in splits]
    while named and not named[-1]:
        named.pop()
    return PartitionSpec(*(names if len(names) > 1 else [*names, None][0] for names in named))


class AutomaticSplit(NamedTuple):
    """The automatic rule: what it splits over, and what it leaves alone.

    Attributes:
        mesh: the mesh.
        names: the mesh axes, which are used together.
        min_size: arrays with fewer entries stay whole.
    """

    mesh: AnyMesh
    names: tuple[str, ...]
    min_size: int

    def others(self, splits: AxisSplits) -> tuple[str, ...]:
        """Returns the mesh axes of the rule that an array is not split over yet."""
        rest = tuple(name for name in self.names if name not in used(splits))
        return rest if shards(self.mesh, rest) > 1 else ()

    def reason(self, shape: Shape, splits: AxisSplits) -> str:
        """Returns why an array can't be split further; empty if it can, or has been."""
        if not self.others(splits):
            return ""
        if math.prod(shape) < self.min_size:
            return SMALL
        return "" if self._axes(shape, splits) else UNDIVIDED

    def _axes(self, shape: Shape, splits: AxisSplits) -> list[int]:
        count = shards(self.mesh, self.others(splits))
        sizes = enumerate(zip(shape, splits, strict=True))
        return [
            axis for axis, (size, names) in sizes if not names and size and size % count == 0
        ]

    def __call__(
        self,
        shape: Shape,
        splits: AxisSplits,
        avoid: Collection[int] = (),
        first: int | None = None,
    ) -> AxisSplits:
        """Returns the splits with the axes of the rule, where they find a place.

        Args:
            shape: of the array.
            splits: what it is split over already; that stays.
            avoid: axes that are split only if no other can be.
            first: an axis that is split if it can be.
        """
        others = self.others(splits)
        if not others or self.reason(shape, splits):
            return splits

        def preference(axis: int) -> tuple[bool, bool, int, int]:
            return axis == first, axis not in avoid, shape[axis], axis

        best = max(self._axes(shape, splits), key=preference)
        return (*splits[:best], others, *splits[best + 1 :])
