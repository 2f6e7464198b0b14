"""Metrics: weighted means and other monoids; `flaxtrain.metrics.clu_adapter` knows clu's."""

from __future__ import annotations

from flaxtrain.metrics.gradients import NonFiniteReport, gradient_stats, nonfinite_report
from flaxtrain.metrics.mean import Mean, Terms
from flaxtrain.metrics.monoid import compute, empty_like, is_metric, merge, merge_over
from flaxtrain.metrics.std import Std

__all__ = [
    "Mean",
    "NonFiniteReport",
    "Std",
    "Terms",
    "compute",
    "empty_like",
    "gradient_stats",
    "is_metric",
    "merge",
    "merge_over",
    "nonfinite_report",
]
