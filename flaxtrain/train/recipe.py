"""The recipe: what does not change in a run. The state is what does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from flaxtrain.data.inputs import model_inputs, target
from flaxtrain.durations import Horizon
from flaxtrain.errors import EmptyDatasetError, FlaxtrainError
from flaxtrain.optim import GradientTransformation
from flaxtrain.params import Facts, ParamFact
from flaxtrain.spec import OptSpec, build
from flaxtrain.train.contract import LossFn
from flaxtrain.train.model import BoundModel, call_arguments
from flaxtrain.train.probe import Probe
from flaxtrain.train.state import TrainState
from flaxtrain.train.supervised import SupervisedLoss, check_loss, infer_loss
from flaxtrain.train.with_collection import CollectionLoss
from flaxtrain.tree import Path
from flaxtrain.typing import Batch, Collections, Key, Params

__all__ = ["Recipe", "make_recipe"]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What does not change in a run. Equal only to itself, so it is a static argument of `jit`.

    Attributes:
        module: the Linen module.
        loss_fn: the loss function, given or inferred.
        spec: the optimizer spec, with every duration resolved.
        tx: the gradient transformation built from it.
        facts: the table of parameters.
        trainable: the paths that are trained; None means all.
        streams: the rng streams that the module draws from.
        sown: collections that the module sows afresh in each call.
        padding_problem: the error that a batch with padding rows would raise (a scalar loss,
            say), or None when padding is exact.
        example: shapes and dtypes of one batch.
        output: shape and dtype of the model's output where the loss is supervised, else None.
    """

    module: nn.Module
    loss_fn: LossFn
    spec: OptSpec
    tx: GradientTransformation
    facts: Facts
    trainable: frozenset[Path] | None
    streams: tuple[str, ...]
    sown: tuple[str, ...]
    padding_problem: FlaxtrainError | None
    example: Batch
    output: Any

    @property
    def supervised(self) -> SupervisedLoss | None:
        """The supervised loss, inferred or given by name; None for a loss function."""
        loss = self.loss_fn
        if isinstance(loss, CollectionLoss):
            loss = loss.loss_fn
        return loss if isinstance(loss, SupervisedLoss) else None

    @property
    def decay(self) -> dict[str, Any] | None:
        """Nested dicts of bools like the params; None where an optimizer object decides."""
        decayed = self.tx.arguments.get("decayed")
        if decayed is None:
            return None
        return self.facts.tree(lambda fact: fact.path in decayed and self.trains(fact))

    def trains(self, fact: ParamFact) -> bool:
        """Returns whether a parameter is trained."""
        return self.trainable is None or fact.path in self.trainable

    def init(self, seed: int | Key = 0) -> TrainState:
        """Returns the state before the first step: parameters as `module.init` makes them.

        Args:
            seed: an integer or a typed key; the parameters equal those of
                `module.init(key, ...)`.
        """
        key = jax.random.key(seed) if isinstance(seed, int) else seed
        variables = jax.jit(lambda k: _initial(self, k))(key)
        params = variables.pop("params", {})
        return self.state(params, variables, key)

    def state(self, params: Params, collections: Collections, rng: Key) -> TrainState:
        """Returns the state before the first step, from given parameters and collections."""
        return TrainState.create(
            apply_fn=self.module.apply,
            params=params,
            tx=self.tx,
            collections=collections,
            rng=rng,
            trainable=self.trainable,
        )

    def bind(
        self, state: TrainState, params: Params, *, train: bool, **rows: Any
    ) -> BoundModel:
        """Returns the model bound to `params` and to the rest of `state`."""
        return BoundModel(
            self.module,
            params,
            state.collections,
            rng=state.rng,
            streams=self.streams,
            step=state.step,
            train=train,
            sown=self.sown,
            **rows,
        )


def _initial(recipe: Recipe, key: Key) -> dict[str, Any]:
    probe = Probe(recipe.module, recipe.loss_fn, recipe.example)
    return meta.unbox(probe.run_init(key).variables)


def make_recipe(
    module: nn.Module,
    spec: OptSpec,
    batch: Batch,
    *,
    loss: LossFn | str | None = None,
    metrics: Any = None,
    horizon: Horizon | None = None,
) -> Recipe:
    """Finds out all that is fixed before a run, by abstract evaluation: nothing is computed.

    Args:
        module: the Linen module.
        spec: what the optimizer does.
        batch: one batch, of arrays or `jax.ShapeDtypeStruct`.
        loss: a loss function, the name of a supervised loss, or None to infer one.
        metrics: a `clu.metrics.Collection` class, or None.
        horizon: length of the run, against which relative durations are resolved.

    Raises:
        LossError: no loss can be inferred, or it breaks the contract.
        ArgumentTypeError: `loss` is not of these kinds.
        ModelError: the module can't be run as it is.

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
    if not jax.tree.leaves(batch):
        raise EmptyDatasetError("the batch holds no array", where="make_recipe(batch=...)")
    example = jax.tree.map(_shape_of, batch)
    loss_fn, output = _resolve_loss(module, loss, example)
    if metrics is not None:
        loss_fn = CollectionLoss(loss_fn, metrics)
    probe = Probe(module, loss_fn, example)
    facts = probe.facts()
    trainable = frozenset(
        path for path, fact in facts.items() if jnp.issubdtype(fact.dtype, jnp.inexact)
    )
    spec = spec.resolve(horizon or Horizon())
    return Recipe(
        module=module,
        loss_fn=loss_fn,
        spec=spec,
        tx=build(spec, facts),
        facts=facts,
        trainable=None if len(trainable) == len(facts) else trainable,
        streams=tuple(sorted({"dropout", *facts.rng_streams} - {"params"})),
        sown=probe.sown,
        padding_problem=probe.padding_problem(),
        example=example,
        output=output,
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
