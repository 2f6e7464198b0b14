"""The state of what `build` makes."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from flaxtrain.spec.packed_numbers import PackedNumbers
from flaxtrain.typing import Array

__all__ = ["ClipMemory", "OptState"]

ClipMemory: TypeAlias = dict[str, dict[str, PackedNumbers]]
"""What clips remember: by group, then by the name of the clip's number."""


class OptState(NamedTuple):
    """The state of a transformation that was built from a spec.

    Attributes:
        count: int32 scalar, the number of updates applied.
        learning_rates: for each group, the rate that the last update applied, a float32 scalar;
            0 before the first one, and while the group is frozen. Empty where an optimizer
            object does not tell.
        hyperparams: for each group, the numbers that the last update used, or the first one
            will, by name: float scalars (float32, float64 under x64), and a pair b, 1 - b for
            the decay of a moving average; one leaf of the tree for each group. Constants are
            read from here; `set_hyperparameters` edits them. The `clip_norm` of the whole
            gradient is that of the group `"default"`.
        slots: for a named optimizer, a tree like the trained parameters for each slot, by the
            slot's name; for an object, the object's own state. Where groups have different
            optimizers, a dict of those, by the name of a group that has it:
            `"default"` if that one does, else the first.
        clip_memory: what clipping remembers of earlier gradients, by group and kind: for
            `ClipZScore` the number of norms seen, their mean and variance. Empty for all other
            kinds.
    """

    count: Any  # an Array; `count` is also a method of tuple
    learning_rates: dict[str, Array]
    hyperparams: dict[str, PackedNumbers]
    slots: Any
    clip_memory: ClipMemory = {}  # noqa: RUF012, never changed
