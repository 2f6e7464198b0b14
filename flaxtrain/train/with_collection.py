"""Using a `clu.metrics.Collection` as the metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flaxtrain.errors import LossError
from flaxtrain.metrics.clu_adapter import collection_metrics
from flaxtrain.train.contract import LossFn
from flaxtrain.train.supervised import SupervisedLoss
from flaxtrain.typing import Batch

__all__ = ["CollectionLoss"]


@dataclass(frozen=True)
class CollectionLoss:
    """A loss function whose second result is turned into the metrics of a clu collection.

    Args:
        loss_fn: a supervised loss, which offers `logits`, `labels` and `loss`; or a loss
            function that returns `(loss, {name: model output})`.
        collection: a `clu.metrics.Collection` class.
    """

    loss_fn: LossFn
    collection: Any
    may_report: ClassVar[tuple[str, ...]] = ("loss",)
    """Names of the step's own metrics that a collection may define: flax's examples do."""

    def __call__(self, model: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Returns the loss and clu's metrics, formed with the row mask."""
        if isinstance(self.loss_fn, SupervisedLoss):
            outputs: Mapping[str, Any] = self.loss_fn.outputs(model, batch)
            loss = outputs["loss"]
        else:
            loss, outputs = self._custom(model, batch)
        return loss, collection_metrics(self.collection, outputs, model.mask)

    def _custom(self, model: Any, batch: Batch) -> tuple[Any, Mapping[str, Any]]:
        returned = self.loss_fn(model, batch)
        pair = isinstance(returned, tuple) and len(returned) == 2
        if not (pair and isinstance(returned[1], Mapping)):
            raise LossError(
                "the loss function returns no outputs for the metrics collection",
                where="loss_fn",
                fix="return (loss, {'logits': ..., 'labels': ...}), what the collection needs",
            )
        loss, outputs = returned
        return loss, outputs if "loss" in outputs else {"loss": loss, **outputs}
