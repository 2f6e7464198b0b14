"""Batches that carry the features of the frozen modules, and the loss that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxtrain.train.frozen_calls import AnsweredCalls, FrozenFeatures
from flaxtrain.typing import Batch

__all__ = ["CachedLoss", "batch_with_features"]

_FEATURES, _BATCH = "flaxtrain/frozen_features", "flaxtrain/batch"


def batch_with_features(batch: Batch, features: Sequence[Any]) -> dict[str, Any]:
    """Returns a batch that carries its features; a dict keeps its entries, and its weights.

    Example:
        >>> batch_with_features({"label": 3}, ["the features"])
        {'label': 3, 'flaxtrain/frozen_features': ('the features',)}
    """
    entries = batch if isinstance(batch, Mapping) else {_BATCH: batch}
    return {**entries, _FEATURES: tuple(features)}


def _apart(batch: Mapping[str, Any]) -> tuple[Batch, tuple[Any, ...]]:
    """Inverse of `batch_with_features`."""
    entries = dict(batch)
    features = entries.pop(_FEATURES)
    return entries.get(_BATCH, entries), features


@dataclass(frozen=True)
class CachedLoss:
    """A loss function whose batches are those of `batch_with_features`.

    Args:
        loss_fn: the loss function, for batches without features.
        features: what is cached.
    """

    loss_fn: Callable[[Any, Batch], Any]
    features: FrozenFeatures

    @property
    def may_report(self) -> tuple[str, ...]:
        """Names of the step's own metrics that the loss function may define."""
        return getattr(self.loss_fn, "may_report", ())

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Runs the loss function on a model whose frozen modules are answered."""
        entries, features = _apart(batch)
        model.frozen_calls = AnsweredCalls(self.features, features)
        return self.loss_fn(model, entries)
