"""Values that change during a run: functions of the count that are also data.

Factories carry the names, arguments, defaults and numbers that optax users know.
"""

from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.compose import JoinedSchedule, join_schedules
from flaxtrain.schedules.constant import ConstantSchedule, constant_schedule
from flaxtrain.schedules.cosine import CosineDecaySchedule, cosine_decay_schedule
from flaxtrain.schedules.polynomial import (
    PolynomialSchedule,
    linear_schedule,
    polynomial_schedule,
)
from flaxtrain.schedules.registry import FACTORIES, from_dict
from flaxtrain.schedules.warmup import (
    WarmupConstantSchedule,
    WarmupCosineDecaySchedule,
    WarmupSchedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
)

__all__ = [
    "FACTORIES",
    "ConstantSchedule",
    "CosineDecaySchedule",
    "JoinedSchedule",
    "PolynomialSchedule",
    "Schedule",
    "WarmupConstantSchedule",
    "WarmupCosineDecaySchedule",
    "WarmupSchedule",
    "constant_schedule",
    "cosine_decay_schedule",
    "from_dict",
    "join_schedules",
    "linear_schedule",
    "polynomial_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
]
