"""The losses that need no loss function: by name, or inferred from predictions and targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxtrain.data.inputs import example_weights, model_inputs, target
from flaxtrain.errors import ArgumentTypeError, LossError, unknown_name
from flaxtrain.losses import (
    absolute_error,
    softmax_cross_entropy_with_integer_labels,
    squared_error,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import Array, Batch, DTypeLike

__all__ = ["SUPERVISED", "SupervisedLoss", "check_labels", "check_loss", "infer_loss"]

CUSTOM_LOSS = """write the loss yourself:
         def loss_fn(model, batch):
             prediction = model(batch[...])
             return my_loss(prediction, batch[...])     # one value per example
         ft.Trainer(model, spec, loss=loss_fn)"""


def _accuracy(logits: Array, labels: Array) -> Array:
    return jnp.argmax(logits, axis=-1) == labels


SUPERVISED: Mapping[str, tuple[Callable[..., Array], str, Callable[..., Array]]] = {
    "softmax_cross_entropy_with_integer_labels": (
        softmax_cross_entropy_with_integer_labels,
        "accuracy",
        _accuracy,
    ),
    "squared_error": (squared_error, "absolute_error", absolute_error),
}
"""By the loss's name: the loss, and the name and function of the metric that goes with it."""


@dataclass(frozen=True)
class SupervisedLoss:
    """A loss function made from the names of a loss and of the model's arguments.

    Args:
        name: a key of `SUPERVISED`.
        arguments: the data arguments of the module's `__call__`, which say what part of a batch
            reaches the model.
    """

    name: str
    arguments: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.name not in SUPERVISED:
            raise unknown_name("loss", self.name, SUPERVISED, where="Trainer(loss=...)")

    @property
    def classifies(self) -> bool:
        """Whether the targets are class labels."""
        return self.name == "softmax_cross_entropy_with_integer_labels"

    def outputs(self, model: Any, batch: Batch) -> dict[str, Array]:
        """Returns `logits` (the prediction), `labels` (the target) and per-example `loss`."""
        wanted = target(batch)
        args, kwargs = model_inputs(batch, self.arguments)
        prediction = model(*args, **kwargs)
        _check_fit(self, prediction, wanted)
        loss = SUPERVISED[self.name][0](prediction, wanted)
        return {"logits": prediction, "labels": wanted, "loss": _per_example(loss)}

    def __call__(self, model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Returns the per-example loss, and the metric that goes with it."""
        outputs = self.outputs(model, batch)
        _, metric_name, metric = SUPERVISED[self.name]
        values = metric(outputs["logits"], outputs["labels"])
        return outputs["loss"], {metric_name: _per_example(values, outputs["loss"].dtype)}


def check_loss(loss: Any) -> None:
    """Refuses a loss that is neither a function of `(model, batch)` nor a known name nor None.

    Raises:
        UnknownNameError: there is no loss of that name.
        ArgumentTypeError: it has another type, or does not take these two arguments.
    """
    if loss is None or (isinstance(loss, str) and loss in SUPERVISED):
        return
    if isinstance(loss, str):
        raise unknown_name("loss", loss, SUPERVISED, where="Trainer(loss=...)")
    if not callable(loss):
        raise ArgumentTypeError(
            f"loss={loss!r} is {kind_of(loss)}",
            where="Trainer(loss=...)",
            fix="pass a function loss_fn(model, batch), the name of a loss, or None",
        )
    try:
        signature = inspect.signature(loss)
    except ValueError:  # a function written in C may have none
        return
    try:
        signature.bind("model", "batch")
    except TypeError as error:
        raise ArgumentTypeError(
            f"the loss function has the signature {signature}",
            where="Trainer(loss=...)",
            fix="write it with two arguments: def loss_fn(model, batch)",
        ) from error


def _per_example(values: Array, otherwise: DTypeLike = jnp.float32) -> Array:
    """Averages over all axes but the batch axis.

    Args:
        values: `[batch, ...]`.
        otherwise: in which dtype, float32 at least, where values have no precision themselves.
    """
    known = jnp.issubdtype(values.dtype, jnp.inexact)
    dtype = None if known else jnp.promote_types(otherwise, jnp.float32)
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1, dtype=dtype)


def _check_fit(loss: SupervisedLoss, prediction: Any, wanted: Any) -> None:
    problem = _misfit(loss.classifies, prediction, wanted)
    if problem is not None:
        fix = _hint(prediction, wanted) + CUSTOM_LOSS
        raise LossError(problem, where=f"loss {loss.name!r}", fix=fix)


def _misfit(classifies: bool, prediction: Any, wanted: Any) -> str | None:
    if not hasattr(prediction, "shape"):
        return f"the model returns {kind_of(prediction)}, not one array"
    if not classifies:
        if prediction.shape == wanted.shape:
            return None
        return f"predictions have shape {prediction.shape}, targets {wanted.shape}"
    if not jnp.issubdtype(wanted.dtype, jnp.integer):
        return f"labels have dtype {wanted.dtype}; class labels are integers"
    if prediction.shape[:-1] != wanted.shape:
        return (
            f"logits have shape {prediction.shape}, labels {wanted.shape}; "
            "labels have the shape of the logits without the last axis"
        )
    return None


def infer_loss(prediction: Any, wanted: Any, arguments: tuple[str, ...]) -> SupervisedLoss:
    """Chooses the loss from what the model predicts and what the batch holds as target.

    Exactly two cases: integer labels whose shape is the prediction's without its last axis
    (softmax cross-entropy, accuracy), and float targets of the prediction's shape (squared
    error, absolute error).

    Args:
        prediction: the model's output, concrete or abstract.
        wanted: the target, likewise.
        arguments: the data arguments of the module's `__call__`.

    Raises:
        LossError: neither case; the message shows how to give a loss.

    Example:
        >>> import jax
        >>> logits = jax.ShapeDtypeStruct((8, 10), jnp.float32)
        >>> infer_loss(logits, jax.ShapeDtypeStruct((8,), jnp.int32), ("x",)).name
        'softmax_cross_entropy_with_integer_labels'
    """
    integers = jnp.issubdtype(wanted.dtype, jnp.integer)
    if not integers and not jnp.issubdtype(wanted.dtype, jnp.floating):
        problem: str | None = f"targets have dtype {wanted.dtype}"
    else:
        problem = _misfit(bool(integers), prediction, wanted)
    if problem is not None:
        raise LossError(
            f"no loss was given, and none can be inferred: {problem}",
            where="Trainer(loss=None)",
            fix=_hint(prediction, wanted) + CUSTOM_LOSS,
        )
    name = "softmax_cross_entropy_with_integer_labels" if integers else "squared_error"
    return SupervisedLoss(name, arguments)


def _hint(prediction: Any, wanted: Any) -> str:
    """Names the two usual mistakes with floats: labels as floats, and a last axis of size 1."""
    shape = getattr(prediction, "shape", ())
    if not jnp.issubdtype(wanted.dtype, jnp.floating) or shape[:-1] != wanted.shape:
        return ""
    if shape[-1:] == (1,):
        return "give the targets the shape of the predictions: targets[..., None]; or "
    return "if the targets are class labels, make them integers: labels.astype('int32'); or "


def check_labels(loss: Any, batch: Batch, classes: int, *, where: str) -> None:
    """Refuses class labels outside `[0, classes)`, on the host.

    Args:
        loss: the loss; anything but a classifying `SupervisedLoss` passes.
        batch: a host batch or the whole data set, as numpy arrays.
        classes: size of the last axis of the logits.
        where: names the batch in the message.

    Raises:
        LossError: a label is out of range.
    """
    if not (isinstance(loss, SupervisedLoss) and loss.classifies):
        return
    labels = target(batch)
    if not isinstance(labels, np.ndarray) or labels.size == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        _check_counting_labels(labels, example_weights(batch), classes, where)


def _check_counting_labels(labels: np.ndarray, weights: Any, classes: int, where: str) -> None:
    """Raises for the first label out of range in a row that counts."""
    bad = (labels < 0) | (labels >= classes)
    if weights is not None:
        bad &= (np.asarray(weights) != 0).reshape(-1, *(1,) * (labels.ndim - 1))
    places = np.argwhere(bad)
    if not len(places):
        return
    wrong = int(labels[tuple(places[0])])
    raise LossError(
        f"label {wrong} is out of range: the model predicts {classes} classes, "
        f"0 to {classes - 1}",
        where=f"{where}, row {int(places[0][0])}",
        fix=f"give the model {int(labels[bad].max()) + 1} outputs, or correct the labels"
        if wrong >= 0
        else "correct the labels, leave such examples out, or give them weight 0 (an entry "
        "'mask' or 'weight' of the batch, one number per example)",
    )
