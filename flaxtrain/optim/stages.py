"""What an optimizer with a name is made of, in the order in which it is applied.

A stage is a `Rule` about one array, a whole transformation (for methods that look across
arrays or draw noise), or one of two places: `DECAY`, where weight decay is added, and `RATE`,
where the update is multiplied by minus the learning rate. Adam with decoupled decay is
`(Adam(...), DECAY, RATE)`.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from flaxtrain.optim.rule import Rule
from flaxtrain.optim.transform import GradientTransformation

__all__ = ["DECAY", "RATE", "Place", "Stage"]


class Place(Enum):
    """A place in the order of stages that the spec fills."""

    DECAY = "decay"
    RATE = "rate"


DECAY = Place.DECAY
"""Here `weight_decay * x` is added (subtracted, if this place is behind `RATE`)."""

RATE = Place.RATE
"""Here the update is multiplied by minus the learning rate."""

Stage: TypeAlias = Rule | GradientTransformation | Place
"""One stage of an optimizer."""
