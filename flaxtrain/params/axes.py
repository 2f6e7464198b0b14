"""Which axes of a parameter `nn.scan` and `nn.vmap` added.

A module inside `nn.scan(..., length=3)` declares a kernel of shape `(8, 16)`, and the params
hold one of shape `(3, 8, 16)`. Shapes alone can't tell which axis is the new one (the kernel
may be `(3, 3)`), so flax is asked: a lifted transformation reports every axis it adds to the
metadata box around an initial value. `AxisBox` is such a box; it only takes notes.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
from flax import struct
from flax.core import meta

# Nothing here is public: `ParamFact.lifted_axes` is the result.
__all__ = []

Shape = tuple[int, ...]


class AxisBox(struct.PyTreeNode, meta.AxisMetadata[Any]):
    """A metadata box that records the position of each axis added around its value.

    `axes` are positions in the shape after all additions so far, in the order of addition;
    `rank` is the number of axes the value will have then. The value may itself be a box (of
    partitioning names, say), which is told about every axis as well.
    """

    value: Any
    rank: int = struct.field(pytree_node=False)
    axes: Shape = struct.field(default=(), pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> AxisBox:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> AxisBox:
        value = self.value
        if isinstance(value, meta.AxisMetadata):
            value = value.add_axis(index, params)
        # A negative index counts from the end of the shape that includes the new axis.
        position = index % (self.rank + 1)
        moved = tuple(axis + (axis >= position) for axis in self.axes)
        return self.replace(value=value, rank=self.rank + 1, axes=(*moved, position))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> AxisBox:
        value = self.value
        if isinstance(value, meta.AxisMetadata):
            value = value.remove_axis(index, params)
        position = index % self.rank
        rest = (axis for axis in self.axes if axis != position)
        moved = tuple(axis - (axis > position) for axis in rest)
        return self.replace(value=value, rank=self.rank - 1, axes=moved)


def is_box(node: Any) -> bool:
    """Whether `node` is a metadata box, ours or another's."""
    return isinstance(node, meta.AxisMetadata)


def array_in(leaf: Any) -> Any:
    """Returns the one array (or shape, or tracer) in a leaf that may be boxed.

    Not `meta.unbox`: some boxes constrain the sharding when they are opened.
    """
    arrays = jax.tree.leaves(leaf)
    return arrays[0] if len(arrays) == 1 and hasattr(arrays[0], "dtype") else None


def box_leaves(value: Any) -> Any:
    """Puts an `AxisBox` around every array of an initial value, outside the boxes it has."""

    def box(leaf: Any) -> AxisBox:
        return AxisBox(leaf, rank=len(array_in(leaf).shape))

    return jax.tree.map(box, value, is_leaf=is_box)


def unbox_leaves(value: Any) -> Any:
    """Inverse of `box_leaves`: the caller of `param(..., unbox=False)` wants its own boxes."""

    def unbox(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, AxisBox) else leaf

    return jax.tree.map(unbox, value, is_leaf=lambda node: isinstance(node, AxisBox))


def without(shape: Shape, axes: Shape) -> Shape:
    """Returns `shape` without the axes at those positions."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def guess_axes(local: Shape, shape: Shape) -> Shape:
    """Returns the foremost axes whose removal turns `shape` into `local`, or `()` if none do.

    For the few values that lose their box on the way (WeightNorm under a scan computes new
    ones).
    """
    extra = len(shape) - len(local)
    if extra <= 0:
        return ()
    candidates = itertools.combinations(range(len(shape)), extra)
    return next((axes for axes in candidates if without(shape, axes) == local), ())
