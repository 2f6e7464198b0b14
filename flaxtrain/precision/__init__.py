"""Numeric precision: loss scaling."""

from flaxtrain.precision.loss_scale import (
    UNSCALED,
    DynamicScale,
    FixedScale,
    LossScale,
    NoScale,
)

__all__ = ["UNSCALED", "DynamicScale", "FixedScale", "LossScale", "NoScale"]
