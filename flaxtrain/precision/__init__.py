"""Numeric precision: loss scaling."""

from flaxtrain.precision.loss_scale import DynamicScale, FixedScale, LossScale, NoScale

__all__ = ["DynamicScale", "FixedScale", "LossScale", "NoScale"]
