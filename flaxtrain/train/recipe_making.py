"""From a module, a spec and one batch to the recipe of a run."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from flaxtrain.answering import answering_with
from flaxtrain.data.inputs import model_inputs, target
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentTypeError, EmptyDatasetError
from flaxtrain.params import LoRA
from flaxtrain.precision import Precision
from flaxtrain.spec import (
    OptSpec,
    assign,
    check_carries,
)
from flaxtrain.spec.validate import SPEC_ARGUMENTS
from flaxtrain.text import kind_of
from flaxtrain.train.contract import LossFn
from flaxtrain.train.model import call_arguments
from flaxtrain.train.options import StepOptions
from flaxtrain.train.precision import casts_of
from flaxtrain.train.probe import Probe
from flaxtrain.train.recipe import Recipe, of_phase
from flaxtrain.train.supervised import SupervisedLoss, check_loss, infer_loss
from flaxtrain.train.with_collection import CollectionLoss
from flaxtrain.typing import Batch

__all__ = ["make_recipe"]


@answering_with(
    **SPEC_ARGUMENTS,
    loss_scale="options=StepOptions(loss_scale=...)",
    precision="options=StepOptions(precision=...)",
)
def make_recipe(
    module: nn.Module,
    spec: OptSpec,
    batch: Batch,
    *,
    loss: LossFn | str | None = None,
    metrics: Any = None,
    horizon: Horizon | None = None,
    adapters: LoRA | None = None,
    options: StepOptions | None = None,
) -> Recipe:
    """Finds out all that is fixed before a run, by abstract evaluation: nothing is computed.

    Args:
        module: the Linen module.
        spec: what the optimizer does.
        batch: one batch, of arrays or `jax.ShapeDtypeStruct`.
        loss: a loss function, the name of a supervised loss, or None to infer one.
        metrics: a `clu.metrics.Collection` class, or None.
        horizon: length of the run, against which relative durations are resolved.
        adapters: which kernels get a trained low-rank matrix beside them; the rest is frozen.
        options: how a training step is made; default `StepOptions()`.

    Raises:
        LossError: no loss can be inferred, or it breaks the contract.
        ArgumentTypeError: an argument is not of these kinds.
        ModelError: the module can't be run as it is.
        BatchError: the batch does not divide into microbatches.

    Example:
        >>> import numpy as np
        >>> from flaxtrain import OptSpec
        >>> batch = {"x": np.ones((8, 3), "float32"), "label": np.zeros(8, "int32")}
        >>> recipe = make_recipe(nn.Dense(2), OptSpec("sgd", learning_rate=0.1), batch)
        >>> recipe.loss_fn.name
        'softmax_cross_entropy_with_integer_labels'
        >>> state = recipe.init(seed=0)
        >>> state.params["kernel"].shape
        (3, 2)
    """
    options = StepOptions() if options is None else options
    _check_types(module=module, spec=spec, adapters=adapters, options=options)
    if not jax.tree.leaves(batch):
        raise EmptyDatasetError(
            "the batch holds no array",
            where="make_recipe(batch=...)",
            fix="pass a dict or tuple of arrays, one row per example",
        )
    example = jax.tree.map(_shape_of, batch)
    spec.accumulation.check_rows(jax.tree.leaves(example)[0].shape[0])
    loss_fn, output = _resolve_loss(module, loss, example)
    if metrics is not None:
        loss_fn = CollectionLoss(loss_fn, metrics)
    probe = Probe(module, loss_fn, example)
    facts = probe.facts()
    bound = None if adapters is None else adapters.bind(facts, probe.initialise)
    if bound is not None:
        facts = bound.facts
    stored = None if bound is None else bound.lora.dtype
    casts = casts_of(Precision.of(options.precision), facts, probe.initialise, stored)
    facts = casts.facts(facts)
    still = frozenset() if bound is None else frozenset(facts) - bound.trainable
    assignment = assign(spec, facts, horizon, still=still)
    check_carries(assignment)
    return Recipe(
        module=module,
        loss_fn=loss_fn,
        spec=assignment.spec,
        assignment=assignment,
        facts=facts,
        adapters=bound,
        **of_phase(assignment, assignment.phases[0], facts),
        streams=tuple(sorted({"dropout", *facts.rng_streams} - {"params"})),
        sown=probe.sown,
        padding_problem=probe.padding_problem(),
        example=example,
        probe=probe,
        output=output,
        options=options,
        casts=casts,
    )


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype as the compiled step will see them: 64 bits only under x64."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _resolve_loss(
    module: nn.Module, loss: LossFn | str | None, example: Batch
) -> tuple[LossFn, Any]:
    """Returns the loss function, and for a supervised loss what the model puts out."""
    check_loss(loss)
    if callable(loss):
        return loss, None
    arguments = call_arguments(module)
    named = None if loss is None else SupervisedLoss(loss, arguments)
    wanted = target(example)

    def predict(model: Any, batch: Batch) -> Any:
        args, kwargs = model_inputs(batch, arguments)
        return model(*args, **kwargs)

    prediction = Probe(module, predict, example).returned()
    return named or infer_loss(prediction, wanted, arguments), prediction


def _check_types(**given: Any) -> None:
    kinds = {"module": nn.Module, "spec": OptSpec, "adapters": LoRA, "options": StepOptions}
    for name, value in given.items():
        optional = name == "adapters" and value is None
        if not (optional or isinstance(value, kinds[name])):
            raise ArgumentTypeError(
                f"{name}={value!r} is {kind_of(value)}, no {kinds[name].__name__}",
                where="make_recipe",
                fix=f"pass an instance of {kinds[name].__name__}",
            )
