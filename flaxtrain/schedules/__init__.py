"""Values that change during a run: functions of the count that are also data.

Factories carry the names, arguments, defaults and numbers that optax users know."""

from flaxtrain.schedules.base import (
    Schedule,
)
from flaxtrain.schedules.compose import (
    JoinedSchedule,
    join_schedules,
)
from flaxtrain.schedules.constant import (
    ConstantSchedule,
    constant_schedule,
)
from flaxtrain.schedules.cosine import (
    CosineDecaySchedule,
    cosine_decay_schedule,
)
from flaxtrain.schedules.exponential import (
    ExponentialDecaySchedule,
    exponential_decay,
)
from flaxtrain.schedules.inverse_sqrt import (
    InverseSqrtSchedule,
    inverse_sqrt_schedule,
)
from flaxtrain.schedules.onecycle import (
    CosineOnecycleSchedule,
    LinearOnecycleSchedule,
    OnecycleSchedule,
    cosine_onecycle_schedule,
    linear_onecycle_schedule,
)
from flaxtrain.schedules.piecewise import (
    PiecewiseConstantSchedule,
    PiecewiseInterpolateSchedule,
    PiecewiseSchedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
)
from flaxtrain.schedules.polynomial import (
    PolynomialSchedule,
    linear_schedule,
    polynomial_schedule,
)
from flaxtrain.schedules.registry import (
    FACTORIES,
    from_dict,
)
from flaxtrain.schedules.restarts import (
    CosineRestartsSchedule,
    SgdrSchedule,
    cosine_restarts_schedule,
    sgdr_schedule,
)
from flaxtrain.schedules.warmup import (
    WarmupConstantSchedule,
    WarmupCosineDecaySchedule,
    WarmupExponentialDecaySchedule,
    WarmupSchedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from flaxtrain.schedules.wsd import (
    CooldownSchedule,
    WsdSchedule,
    cooldown_schedule,
    wsd_schedule,
)

__all__ = [
    "FACTORIES",
    "ConstantSchedule",
    "CooldownSchedule",
    "CosineDecaySchedule",
    "CosineOnecycleSchedule",
    "CosineRestartsSchedule",
    "ExponentialDecaySchedule",
    "InverseSqrtSchedule",
    "JoinedSchedule",
    "LinearOnecycleSchedule",
    "OnecycleSchedule",
    "PiecewiseConstantSchedule",
    "PiecewiseInterpolateSchedule",
    "PiecewiseSchedule",
    "PolynomialSchedule",
    "Schedule",
    "SgdrSchedule",
    "WarmupConstantSchedule",
    "WarmupCosineDecaySchedule",
    "WarmupExponentialDecaySchedule",
    "WarmupSchedule",
    "WsdSchedule",
    "constant_schedule",
    "cooldown_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "exponential_decay",
    "from_dict",
    "inverse_sqrt_schedule",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "sgdr_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "wsd_schedule",
]
