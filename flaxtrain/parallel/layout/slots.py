"""Where the slots of an optimizer lie: a table of rules, the first that fits counts.

| a slot | as in | is split |
|---|---|---|
| of the parameter's shape | Adam | as the parameter's slots are |
| one vector for each axis | SM3 | as that axis of the parameter is |
| of its shape without some axes | Adafactor | as the axes that are left |
| a stack of square matrices | Shampoo | between matrices, else along their longest axis |
| anything else | `flatten` | along the longest axis |

What the parameter does not decide is left to the automatic rule, which keeps small arrays
whole. So scalars, counts and keys are on every device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from flaxtrain.parallel.layout.splits import AutomaticSplit, AxisSplits, Shape, unsplit

# Nothing here is public: `Layout.state` is.
__all__ = []


class Owner(NamedTuple):
    """What is known about the parameter that a slot belongs to.

    Attributes:
        shape: its shape; `()` for a slot of no parameter.
        splits: what a slot of that shape is split over.
        item: where the slot stands in a list of the parameter's slots, such as one for each
            axis; None if it is the only one.
    """

    shape: Shape
    splits: AxisSplits
    item: int | None = None


Rule = Callable[[Shape, Owner, AutomaticSplit], AxisSplits | None]


def slot_splits(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits:
    """Returns what each axis of a slot is split over.

    Args:
        shape: the slot's.
        owner: its parameter.
        split: the automatic rule.
    """
    tried = (rule(shape, owner, split) for rule in RULES)
    return next(splits for splits in tried if splits is not None)


def _of_its_shape(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits | None:
    return owner.splits if shape == owner.shape else None


def _of_one_axis(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits | None:
    if owner.item is None or owner.item >= len(owner.shape):
        return None
    if shape != (owner.shape[owner.item],):
        return None
    return split(shape, (owner.splits[owner.item],))


def _of_fewer_axes(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits | None:
    """A square matrix has no telling which axis is gone: then the parameter decides nothing."""
    kept = itertools.combinations(range(len(owner.shape)), len(shape))
    fits = [axes for axes in kept if tuple(owner.shape[axis] for axis in axes) == shape]
    inherited = {tuple(owner.splits[axis] for axis in axes) for axes in fits}
    if not inherited:
        return None
    return split(shape, inherited.pop() if len(inherited) == 1 else unsplit(shape))


def _of_matrices(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits | None:
    """Between matrices, each device computes the roots of its own."""
    if len(shape) < 3 or shape[-1] != shape[-2]:
        return None
    return split(shape, unsplit(shape), first=0)


def _anything_else(shape: Shape, owner: Owner, split: AutomaticSplit) -> AxisSplits | None:
    return split(shape, unsplit(shape))


RULES: tuple[Rule, ...] = (
    _of_its_shape,
    _of_one_axis,
    _of_fewer_axes,
    _of_matrices,
    _anything_else,
)
