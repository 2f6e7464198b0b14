"""Metrics: weighted means and other monoids. The clu adapter is `flaxtrain.metrics.clu_adapter`."""

from flaxtrain.metrics.mean import Mean, Terms

__all__ = ["Mean", "Terms"]
