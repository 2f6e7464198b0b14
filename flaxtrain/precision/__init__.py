"""Numeric precision: loss scaling."""

from flaxtrain.precision.loss_scale import LossScale, NoScale

__all__ = ["LossScale", "NoScale"]
