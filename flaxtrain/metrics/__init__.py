"""Metrics: weighted means and other monoids; `flaxtrain.metrics.clu_adapter` knows clu's."""

from __future__ import annotations

from flaxtrain.metrics.mean import Mean, Terms
from flaxtrain.metrics.monoid import compute, empty_like, is_metric, merge
from flaxtrain.metrics.std import Std

__all__ = ["Mean", "Std", "Terms", "compute", "empty_like", "is_metric", "merge"]
