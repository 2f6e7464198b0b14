"""What an optimizer with a name is made of, in the order in which it is applied.

A stage is a `Rule` about one array, a whole transformation (for methods that look across
arrays or draw noise), or one of two places: `DECAY`, where weight decay is added, and `RATE`,
where the update is multiplied by minus the learning rate. Adam with decoupled decay is
`(Adam(...), DECAY, RATE)`.

All stages share one count, and their slots are one dict by name, so that what is saved does
not depend on whether a learning rate is constant or scheduled, or a decay masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flaxtrain.optim.per_leaf import init_slots, update_slots
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.transform import GradientTransformation
from flaxtrain.typing import Array, ArrayLike, Params, Updates

__all__ = ["DECAY", "RATE", "Place", "Stage", "init_stages", "update_stages"]


class Place(Enum):
    """A place in the order of stages that is filled by who applies them."""

    DECAY = "decay"
    RATE = "rate"


DECAY = Place.DECAY
"""Here `weight_decay * x` is added (behind `RATE`: subtracted, as the sign is turned there)."""

RATE = Place.RATE
"""Here the update is multiplied by minus the learning rate."""

Stage: TypeAlias = Rule | GradientTransformation | Place
"""One stage of an optimizer."""


def init_stages(stages: Sequence[Stage], params: Params) -> dict[str, Any]:
    """Returns the slots of all stages by name.

    Slots of a rule are trees like the parameters, under the slot's own name; two stages with
    a slot of the same name have it under `Rule.name`. A transformation keeps its whole state
    under its own name.

    Example:
        >>> from flaxtrain.optim.sgd import Trace
        >>> init_stages((Trace(0.9), DECAY, RATE), {"w": jnp.ones(2)})
        {'trace': {'w': Array([0., 0.], dtype=float32)}}
    """
    slots: dict[str, Any] = {}
    for stage, names in zip(stages, _slot_names(stages)):
        if isinstance(stage, Rule):
            slots |= zip(names, init_slots(stage, params))
        elif isinstance(stage, GradientTransformation):
            slots[names[0]] = stage.init(params)
    return slots


def update_stages(
    stages: Sequence[Stage],
    t: Array,
    updates: Updates,
    slots: Mapping[str, Any],
    params: Params,
    *,
    learning_rate: Any,
    decayed: Callable[[Updates, int], Updates],
    **extra_args: Any,
) -> tuple[Updates, dict[str, Any]]:
    """Applies all stages in order.

    Args:
        stages: what to apply.
        t: int32 scalar, 1 at the first update.
        updates: the gradients, a tree like `params`.
        slots: what `init_stages` or the last `update_stages` returned.
        params: the parameters.
        learning_rate: scalar, that of this update.
        decayed: `decayed(updates, sign)` returns the updates with the weight decay times
            `sign` (1, or -1 behind `RATE`) added.
        **extra_args: handed to the transformations among the stages.

    Returns:
        What to add to the parameters, and the new slots.

    Example:
        >>> from flaxtrain.optim.sgd import Trace
        >>> stages, params = (Trace(0.5), RATE), {"w": jnp.ones(2)}
        >>> updates, slots = update_stages(
        ...     stages, jnp.int32(1), params, init_stages(stages, params), params,
        ...     learning_rate=0.1, decayed=lambda updates, sign: updates,
        ... )
        >>> print(updates["w"], slots["trace"]["w"])
        [-0.1 -0.1] [1. 1.]
    """
    sign, new = 1, dict(slots)
    for stage, names in zip(stages, _slot_names(stages)):
        if stage is DECAY:
            updates = decayed(updates, sign)
        elif stage is RATE:
            updates, sign = _scaled(updates, -learning_rate), -1
        elif isinstance(stage, Rule):
            before = stage.Slots(*(slots[name] for name in names))
            updates, after = update_slots(stage, t, updates, before, params)
            new |= zip(names, after)
        elif isinstance(stage, GradientTransformation):
            updates, new[names[0]] = stage.update(
                updates, slots[names[0]], params, **extra_args
            )
    return updates, new


def _slot_names(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """Returns the names of each stage's slots, unique over all stages."""
    own = [_own_names(stage) for stage in stages]
    flat = [name for names in own for name in names]
    return [
        tuple(f"{type(stage).__name__}.{n}" if flat.count(n) > 1 else n for n in names)
        for stage, names in zip(stages, own)
    ]


def _own_names(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, Rule):
        slots: Any = stage.Slots
        return slots._fields
    return (str(stage.name),) if isinstance(stage, GradientTransformation) else ()


def _scaled(tree: Updates, factor: ArrayLike) -> Updates:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.real.dtype) * leaf, tree)
