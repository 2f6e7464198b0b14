"""What `Trainer.check` looks at before a run, on one batch; nothing is trained.

Labels, the loss at the start, gradients, whether rows depend on one another, and whether an
evaluation tells the same each time, whatever the order of the rows and their padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxtrain.data import Stream
from flaxtrain.data.inputs import example_weights, target
from flaxtrain.data.stream import ArrayStream
from flaxtrain.durations import Horizon
from flaxtrain.errors import LossError
from flaxtrain.loop.debug.check_report import CheckReport, Observation
from flaxtrain.loop.debug.check_rows import evaluations, rows_in_training
from flaxtrain.loop.debug.check_subject import Examined, Gradients
from flaxtrain.loop.debug.few_batches import sample_of
from flaxtrain.loop.debug.twin import check_lasting, recipe_of
from flaxtrain.loop.resume import begin
from flaxtrain.loop.streams import training_stream
from flaxtrain.params import ParamFact
from flaxtrain.text import listed
from flaxtrain.train import check_labels
from flaxtrain.tree import Path, path_name

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["examine"]

_ABOVE, _BELOW = 2.0, 0.5
"""How far the first loss of a classifier may be above ln(C), and which share of it at least.
Logits of variance v make it about ln(C) + v / 2: the usual initial values give 1; 4 is much."""

_SPREAD = 10.0
"""How many times the variance of the targets the first squared error may be, either way.
Predictions of variance 1 for targets of variance 1 make it 2."""


def examine(trainer: Trainer, ds: Any, batch_size: int | None) -> CheckReport:
    """Looks at a model, its loss and its data before a run, at the values that it begins with.

    Args:
        trainer: the trainer, which stays as it is.
        ds: as for `fit`; the first batch is looked at, and of arrays all labels.
        batch_size: as for `fit`.

    Raises:
        FlaxtrainError: what keeps the run from beginning at all.
    """
    check_lasting(ds, where="check")
    stream, _ = training_stream(ds, batch_size, trainer.seed)
    length = stream.batches_per_epoch
    count = trainer.spec.accumulation.count
    horizon = Horizon(max(length or 1, count), length, stream.rows, count)
    recipe = recipe_of(trainer, stream, horizon)
    batch = sample_of(stream, recipe.spec.accumulation.microbatches)
    state = begin(recipe, stream, trainer.seed, None, trainer.init_from).state
    examined = Examined(recipe, state, batch)
    labels = _labels(examined, stream)
    seen = [labels]
    if labels.verdict == "finding":
        skipped = ("loss at the start", "gradients")
        seen += [Observation(name, "not looked at", "the labels don't fit") for name in skipped]
    else:
        gradients = examined.gradients(state)
        seen.append(_first_loss(examined, gradients, loaded=trainer.init_from is not None))
        seen.append(_finite(gradients))
        if seen[-1].verdict == "ok":
            seen.append(_dead(examined, gradients))
    seen.append(rows_in_training(examined))
    seen += evaluations(examined)
    return CheckReport(tuple(seen))


def _labels(examined: Examined, stream: Stream) -> Observation:
    name, recipe = "labels", examined.recipe
    loss = recipe.supervised
    if loss is None or not loss.classifies or recipe.output is None:
        return Observation(name, "not looked at", "the loss is not one for class labels")
    classes = recipe.output.shape[-1]
    whole = isinstance(stream, ArrayStream)
    data = stream.source.arrays if isinstance(stream, ArrayStream) else examined.batch
    where = "the data set" if whole else "the first batch"
    try:
        check_labels(loss, data, classes, where=where)
    except LossError as error:
        return Observation(name, "finding", f"{error.found} ({error.where})", error.fix or "")
    labels = np.asarray(target(data))
    return Observation(
        name, "ok", f"labels {labels.min()} to {labels.max()} in {where}, {classes} classes"
    )


def _first_loss(examined: Examined, gradients: Gradients, *, loaded: bool) -> Observation:
    """Compares the first loss with that of a model that knows nothing.

    Args:
        examined: the model.
        gradients: its loss is looked at.
        loaded: whether weights were loaded: the loss may then be as low as it likes.
    """
    name, loss = "loss at the start", gradients.loss
    expected, text = _of_ignorance(examined)
    if not expected:
        return Observation(name, "not looked at", text)
    seen = f"{loss:.4g}; {text} makes {expected:.4g}"
    supervised = examined.recipe.supervised
    classifies = supervised is not None and supervised.classifies
    low, high = (
        (_BELOW * expected, expected + _ABOVE)
        if classifies
        else (expected / _SPREAD, expected * _SPREAD)
    )
    if not loss <= high:
        fix = (
            "look for a large output layer, inputs that are not normalised, or a loss that "
            "takes probabilities for logits"
            if classifies
            else "normalise targets and inputs, or give the output layer fitting initial values"
        )
        return Observation(name, "finding", f"{seen}, and at most {high:.4g} is usual", fix)
    if loss < low and not loaded:
        fix = "look for targets among the inputs, and for a loss that is divided once too often"
        return Observation(name, "finding", f"{seen}, and at least {low:.4g} is usual", fix)
    return Observation(name, "ok", seen)


def _of_ignorance(examined: Examined) -> tuple[float, str]:
    """Returns the loss of a model that knows nothing, 0 if unknown, and where it is from."""
    recipe = examined.recipe
    loss = recipe.supervised
    if loss is None or recipe.output is None:
        return 0.0, "the loss is a function: what it should begin with is not known"
    if loss.classifies:
        classes = recipe.output.shape[-1]
        return math.log(classes), f"guessing among {classes} classes"
    if loss.name != "squared_error":
        return 0.0, f"what {loss.name} should begin with is not known"
    wanted = np.asarray(target(examined.batch), np.float64)
    weights = example_weights(examined.batch)
    weights = None if weights is None else np.asarray(weights, np.float64)
    mean = np.average(wanted, axis=0, weights=weights)
    spread = float(np.mean(np.average((wanted - mean) ** 2, axis=0, weights=weights)))
    return spread, "predicting the mean target" if spread else "all targets are equal"


def _finite(gradients: Gradients) -> Observation:
    bad = [path_name(path) for path, finite in gradients.finite.items() if not finite]
    parts = [] if math.isfinite(gradients.loss) else ["the loss"]
    if bad:
        parts.append(f"the gradient of {listed(bad)}")
    if not parts:
        return Observation("finite", "ok", "loss and gradients are finite")
    return Observation(
        "finite",
        "finding",
        f"not finite: {', '.join(parts)}",
        "fit(..., debug='checkify') says which operation makes the first NaN",
    )


def _dead(examined: Examined, gradients: Gradients) -> Observation:
    """Looks for trained parameters without any gradient, also where nothing is zero."""
    name = "gradients"
    zero = dict(_zeros(gradients))
    again = dict(_zeros(examined.gradients(examined.perturbed()))) if zero else {}
    dead = {path: layers for path, layers in zero.items() if path in again}
    facts = examined.recipe.facts
    unused = [facts[path] for path in dead if not facts[path].uses]
    silent = [facts[path] for path in dead if facts[path].uses]
    if dead:
        parts = [
            f"{text} {listed([_named(fact, dead[fact.path]) for fact in found])}"
            for text, found in (
                ("the training loss does not use", unused),
                ("the gradient is exactly zero for", silent),
            )
            if found
        ]
        return Observation(
            name,
            "finding",
            "; ".join(parts),
            "look for a stop_gradient, a factor of zero, units that never fire, or a module "
            "whose output is not used; freeze what is not to be trained",
        )
    seen = f"every one of {len(gradients.largest)} trained parameters has a gradient"
    if zero:
        names = listed([_named(facts[path], layers) for path, layers in zero.items()])
        seen += f"; at the initial values, where some are zero, all but {names}"
    return Observation(name, "ok", seen)


def _zeros(gradients: Gradients) -> Iterator[tuple[Path, list[int]]]:
    """Yields the parameters with a layer without gradient, and the numbers of such layers."""
    for path, largest in gradients.largest.items():
        layers = np.flatnonzero(largest == 0).tolist()
        if layers:
            yield path, layers if len(largest) > 1 else []


def _named(fact: ParamFact, layers: list[int]) -> str:
    if not layers or len(layers) == fact.shape[fact.scan_axes[0]]:
        return fact.name
    return f"{fact.name} (layer {listed(layers)})"
