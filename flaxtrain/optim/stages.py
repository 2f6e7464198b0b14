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
from typing import Any, NamedTuple, TypeAlias

from flaxtrain.optim.per_leaf import init_slots, update_slots
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.transform import GradientTransformation
from flaxtrain.tree import flatten, unflatten
from flaxtrain.typing import Array, Params

__all__ = [
    "DECAY",
    "RATE",
    "Lane",
    "Place",
    "Stage",
    "init_stages",
    "slot_names",
    "update_stages",
]


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
        >>> import jax.numpy as jnp
        >>> from flaxtrain.optim.sgd import Trace
        >>> init_stages((Trace(0.9), DECAY, RATE), {"w": jnp.ones(2)})
        {'trace': {'w': Array([0., 0.], dtype=float32)}}
    """
    slots: dict[str, Any] = {}
    for stage, names in zip(stages, slot_names(stages)):
        if isinstance(stage, Rule):
            slots |= zip(names, init_slots(stage, params))
        elif isinstance(stage, GradientTransformation):
            slots[names[0]] = stage.init(params)
    return slots


class Lane(NamedTuple):
    """Parameters that go through the stages together.

    Several lanes run side by side: the same kinds of stages with other numbers.

    Attributes:
        stages: what to apply.
        t: int32 scalar, 1 at the first update.
        updates: the gradients, a flat dict by path, a tuple of names.
        params: the parameters, likewise.
        decayed: `decayed(updates, sign)` returns the updates with the weight decay times
            `sign` (1, or -1 behind `RATE`) added.
        rated: `rated(updates)` returns the updates times minus the learning rate.
    """

    stages: Sequence[Stage]
    t: Array
    updates: dict[Any, Any]
    params: dict[Any, Any]
    decayed: Callable[[dict[Any, Any], int], dict[Any, Any]]
    rated: Callable[[dict[Any, Any]], dict[Any, Any]]


def update_stages(
    lanes: Sequence[Lane], slots: Mapping[str, Any], **extra_args: Any
) -> tuple[list[dict[Any, Any]], dict[str, Any]]:
    """Applies all stages in order.

    Args:
        lanes: parameters with their stages; no parameter is in two of them.
        slots: what `init_stages` or the last `update_stages` returned, over the parameters of
            all lanes; those of other parameters pass through.
        **extra_args: handed to the transformations among the stages.

    Returns:
        What to add to the parameters, one dict for each lane, and the new slots.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxtrain.optim.sgd import Trace
        >>> stages, params = (Trace(0.5), RATE), {("w",): jnp.ones(2)}
        >>> lane = Lane(
        ...     stages, jnp.int32(1), params, params,
        ...     decayed=lambda updates, sign: updates,
        ...     rated=lambda updates: {path: -0.1 * u for path, u in updates.items()},
        ... )
        >>> (updates,), slots = update_stages([lane], init_stages(stages, params))
        >>> print(updates["w",], slots["trace"]["w",])
        [-0.1 -0.1] [1. 1.]
    """
    lanes, new = list(lanes), dict(slots)
    kinds = lanes[0].stages if lanes else ()
    sign = 1
    for place, (kind, names) in enumerate(zip(kinds, slot_names(kinds))):
        if isinstance(kind, GradientTransformation):
            lanes, new[names[0]] = _whole(kind, lanes, new[names[0]], extra_args)
            continue
        for index, lane in enumerate(lanes):
            stage, updates = lane.stages[place], lane.updates
            if stage is DECAY:
                updates = lane.decayed(updates, sign)
            elif stage is RATE:
                updates = lane.rated(updates)
            elif isinstance(stage, Rule):
                before = [{path: new[name][path] for path in updates} for name in names]
                updates, after = update_slots(
                    stage, lane.t, updates, stage.Slots(*before), lane.params
                )
                for name, tree in zip(names, after):
                    new[name] = {**new[name], **tree}
            lanes[index] = lane._replace(updates=updates)
        sign = -1 if kind is RATE else sign
    return [lane.updates for lane in lanes], new


def _whole(
    tx: GradientTransformation, lanes: Sequence[Lane], state: Any, extra_args: dict[str, Any]
) -> tuple[list[Lane], Any]:
    """Applies a transformation to the parameters of all lanes at once."""
    updates, params = (
        {path: leaf for lane in lanes for path, leaf in getattr(lane, name).items()}
        for name in ("updates", "params")
    )
    done, state = tx.update(unflatten(updates), state, unflatten(params), **extra_args)
    updates = flatten(done)
    return [
        lane._replace(updates={path: updates[path] for path in lane.updates}) for lane in lanes
    ], state


def slot_names(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """Returns the names of each stage's slots, unique over all stages.

    Example:
        >>> from flaxtrain.optim.sgd import Trace
        >>> slot_names((Trace(0.9), DECAY, RATE))
        [('trace',), (), ()]
    """
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
