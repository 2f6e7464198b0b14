"""Losses: functions of predictions and targets that return one value per example."""

from flaxtrain.losses.classification import softmax_cross_entropy_with_integer_labels
from flaxtrain.losses.regression import absolute_error, squared_error

__all__ = ["absolute_error", "softmax_cross_entropy_with_integer_labels", "squared_error"]
