"""Numeric precision: policies, loss scales, and updates of parameters of 16 bits."""

from flaxtrain.precision.loss_scale import (
    UNSCALED,
    DynamicScale,
    FixedScale,
    LossScale,
    NoScale,
)
from flaxtrain.precision.policy import Policy, PolicyLike, Precision, short_name, stored_dtype
from flaxtrain.precision.rounding import (
    NEAREST,
    ROUNDING_RULES,
    Kahan,
    Master,
    Nearest,
    Rounding,
    Stochastic,
    is_16_bits,
    rounding_rule,
    stochastically_rounded,
)

__all__ = [
    "NEAREST",
    "ROUNDING_RULES",
    "UNSCALED",
    "DynamicScale",
    "FixedScale",
    "Kahan",
    "LossScale",
    "Master",
    "Nearest",
    "NoScale",
    "Policy",
    "PolicyLike",
    "Precision",
    "Rounding",
    "Stochastic",
    "is_16_bits",
    "rounding_rule",
    "short_name",
    "stochastically_rounded",
    "stored_dtype",
]
