"""The loss contract: what a loss function may return, and what the step makes of it.

`loss_fn(model, batch) -> loss | (loss, {name: metric})`. A loss or metric is

- per-example values `[rows]`: the step applies the row mask and the example weights;
- a `Mean`, or a sum of means: its weights are the user's business
  (`Mean.of(values, model.mask)`);
- a scalar: right only when every row counts, so a batch with a mask refuses it;
- a metric object with `merge` and `compute`, such as clu's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import FlaxtrainError, LossError, MissingKeyError, nearest
from flaxtrain.metrics import Mean, Terms
from flaxtrain.text import kind_of
from flaxtrain.train.model import BoundModel
from flaxtrain.typing import Array, Batch

__all__ = ["STEP_METRICS", "LossFn", "LossOutput", "call_loss", "run_loss"]

LossFn = Callable[[Any, Batch], Any]
"""`loss_fn(model, batch) -> loss | (loss, metrics)`; `model` is a `BoundModel`."""

STEP_METRICS = (
    "loss",
    "grad_norm",
    "clipped_grad_norm",
    "update_norm",
    "param_norm",
    "learning_rate",
    "weight_decay",
    "loss_scale",
)
"""Names that the step itself reports; of several groups the norms, rates and decays also with
`/` and the group's name."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossOutput:
    """What a loss function returned, with every value carrying its weight.

    Attributes:
        loss: the loss.
        metrics: the metrics by name, the loss among them.
    """

    loss: Terms
    metrics: dict[str, Any]


def run_loss(loss_fn: LossFn, model: Any, batch: Batch) -> Any:
    """Calls a loss function; a key that the batch lacks is told with the keys that it has.

    Raises:
        MissingKeyError: the loss function raised `KeyError` for a key that the batch lacks.
    """
    try:
        return loss_fn(model, batch)
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(error, FlaxtrainError) or not isinstance(batch, Mapping) or key in batch:
            raise
        near = nearest(str(key), batch)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise MissingKeyError(
            f"the loss function raised KeyError: {key!r}, and the batch has no such key",
            where="loss_fn",
            fix=f"{hint}The batch has {', '.join(map(repr, batch))}",
        ) from error


def call_loss(loss_fn: LossFn, model: BoundModel, batch: Batch) -> LossOutput:
    """Runs a loss function and brings what it returns into one form.

    Args:
        loss_fn: see the module's docstring.
        model: the bound model; its mask and weight are applied to per-example values.
        batch: the batch.

    Raises:
        LossError: the loss function breaks the contract.
    """
    rows = _rows(batch)
    loss, metrics = _pair(run_loss(loss_fn, model, batch))
    _check_names(metrics, allowed=getattr(loss_fn, "may_report", ()))
    total = _weighted("loss", loss, model, rows)
    if isinstance(total, Mean):
        total = Terms((total,))
    if not isinstance(total, Terms):
        raise LossError(
            f"the loss is {kind_of(loss)}",
            where="loss_fn",
            fix="return per-example values [batch], a Mean or a scalar",
        )
    named = {name: _weighted(name, value, model, rows) for name, value in metrics.items()}
    return LossOutput(total, {"loss": total, **named})


def _pair(returned: Any) -> tuple[Any, Mapping[Any, Any]]:
    if not isinstance(returned, tuple):
        return returned, {}
    form = "return loss, or (loss, {name: metric})"
    if len(returned) != 2:
        raise LossError(
            f"the loss function returned {len(returned)} things", where="loss_fn", fix=form
        )
    if not isinstance(returned[1], Mapping):
        array = isinstance(returned[1], Array)
        kind = "an array" if array else kind_of(returned[1])
        raise LossError(
            f"the second thing that the loss function returned is {kind}, not a dict",
            where="loss_fn",
            fix=form,
        )
    return returned


def _check_names(metrics: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    for name in metrics:
        if not isinstance(name, str):
            raise LossError(
                f"a metric is named {name!r}, which is no string",
                where="loss_fn",
                fix="name metrics with strings",
            )
        own = name in STEP_METRICS or name.partition("/")[0] in STEP_METRICS[1:]
        if own and name not in allowed:
            raise LossError(
                f"metric name {name!r} is one that the step itself reports",
                where="loss_fn",
                fix=f"choose another name than {', '.join(STEP_METRICS)}",
            )


def _rows(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _weighted(name: str, value: Any, model: BoundModel, rows: int) -> Any:
    """Brings one returned value into a form that carries its weight."""
    if isinstance(value, (Mean, Terms)):
        terms = value.terms if isinstance(value, Terms) else (value,)
        if model.mask is not None and not all(term.weighted for term in terms):
            raise LossError(
                f"{name!r} is a Mean over all rows, but the batch has rows that don't count",
                where="loss_fn",
                fix="form it with the row mask: ft.Mean.of(values, model.mask)",
            )
        return _settled(value)
    if hasattr(value, "merge") and hasattr(value, "compute"):
        return value
    array = _as_array(name, value)
    if name == "loss" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise LossError(
            f"the loss has dtype {array.dtype}, which has no gradient",
            where="loss_fn",
            fix="return a real floating-point value that depends on the model's output",
        )
    if array.ndim == 0:
        if model.mask is not None:
            raise LossError(
                f"{name!r} is a scalar, but the batch has rows that don't count",
                where="loss_fn",
                fix="return the per-example values [batch] instead of their mean (leave out "
                "jnp.mean), or ft.Mean.of(values, model.mask)",
            )
        weight = jnp.asarray(rows, jnp.promote_types(array.dtype, jnp.float32))
        return Mean(array.astype(weight.dtype) * weight, weight)
    if array.shape != (rows,):
        raise LossError(
            f"{name!r} has shape {array.shape}, the batch {rows} rows",
            where="loss_fn",
            fix=f"return one value per example, shape ({rows},), or "
            "ft.Mean.of(values, model.mask) for values of any shape",
        )
    return _settled(Mean.of(array, model.weight if model.weight is not None else model.mask))


def _as_array(name: str, value: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise LossError(
            f"{name!r} is {kind_of(value)}, not an array",
            where="loss_fn",
            fix="return per-example values [batch], a Mean, a scalar or a metric object",
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise LossError(f"{name!r} is complex", where="loss_fn", fix="return a real value")
    return array


def _settled(value: Any) -> Any:
    """Forgets `Mean.weighted`, which has done its work: all means get one structure."""
    if isinstance(value, Terms):
        return Terms(tuple(map(_settled, value.terms)))
    return Mean(value.sum, value.weight)
