"""The recipe: what does not change in a run. The state is what does."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from flaxtrain.data.inputs import model_inputs, target
from flaxtrain.durations import Horizon
from flaxtrain.errors import EmptyDatasetError, FlaxtrainError
from flaxtrain.optim import GradientTransformation
from flaxtrain.params import Adapters, Facts, LoRA, ParamFact, join_adapters
from flaxtrain.params.low_rank import LORA
from flaxtrain.spec import (
    Assignment,
    OptSpec,
    Phase,
    assign,
    carried,
    check_carries,
    transformation,
)
from flaxtrain.train.cached_loss import CachedLoss
from flaxtrain.train.contract import LossFn
from flaxtrain.train.frozen_calls import FrozenFeatures
from flaxtrain.train.frozen_modules import FrozenModules, frozen_modules
from flaxtrain.train.model import BoundModel, call_arguments
from flaxtrain.train.options import StepOptions
from flaxtrain.train.probe import Probe
from flaxtrain.train.state import TrainState
from flaxtrain.train.supervised import SupervisedLoss, check_loss, infer_loss
from flaxtrain.train.with_collection import CollectionLoss
from flaxtrain.tree import Path, split
from flaxtrain.typing import Batch, Collections, Key, Params

__all__ = ["Recipe", "make_recipe"]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What does not change in a run. Equal only to itself, so it is a static argument of `jit`.

    A run in which parameters thaw has several phases, and a recipe for each: `at(step)`.

    Attributes:
        module: the Linen module.
        loss_fn: the loss function, given or inferred.
        spec: the optimizer spec, with every duration resolved.
        assignment: what the spec means for each parameter.
        phase: the phase of the run that this recipe is for.
        tx: the gradient transformation of that phase.
        facts: the table of parameters. Those that exist in evaluation only have no `uses`.
        trainable: the paths that are trained; None means all.
        frozen: the frozen modules, and how they behave.
        adapters: the adapters, which are the subtree `lora` of the params; None without.
        streams: the rng streams that the module draws from.
        sown: collections that the module sows afresh in each call.
        padding_problem: the error that a batch with padding rows would raise (a scalar loss,
            say), or None when padding is exact.
        example: shapes and dtypes of one batch.
        probe: makes the variables.
        output: shape and dtype of the model's output where the loss is supervised, else None.
        options: how a training step is made.
    """

    module: nn.Module
    loss_fn: LossFn
    spec: OptSpec
    assignment: Assignment
    phase: Phase
    tx: GradientTransformation
    facts: Facts
    trainable: frozenset[Path] | None
    frozen: FrozenModules
    adapters: Adapters | None
    streams: tuple[str, ...]
    sown: tuple[str, ...]
    padding_problem: FlaxtrainError | None
    example: Batch
    probe: Probe
    output: Any
    options: StepOptions
    _by_phase: dict[int, Recipe] = field(default_factory=dict, repr=False)
    _with_features: dict[Any, Recipe] = field(default_factory=dict, repr=False)

    def at(self, step: int) -> Recipe:
        """Returns the recipe of the phase that a step is in: always the same object."""
        phase = self.assignment.phase_at(step)
        known = self._by_phase
        known.setdefault(self.phase.index, self)
        if phase.index not in known:
            known[phase.index] = replace(self, **_of_phase(self.assignment, phase, self.facts))
        return known[phase.index]

    def with_features(self, features: FrozenFeatures) -> Recipe:
        """Returns the recipe for batches that carry features: always the same object."""
        known, key = self._with_features, (self.phase.index, features)
        if key not in known:
            loss_fn = CachedLoss(self.loss_fn, features)
            known[key] = replace(self, loss_fn=loss_fn, _by_phase={}, _with_features={})
        return known[key]

    def enter(self, state: TrainState) -> TrainState:
        """Returns a state of the phase before as one of this recipe's phase.

        Slots of parameters that were trained before, or kept theirs, go on; those of parameters
        that thaw are fresh.
        """
        fresh = self.tx.init(split(state.params, self.phase.with_slots)[0])
        return state.replace(
            opt_state=carried(fresh, state.opt_state), tx=self.tx, trainable=self.trainable
        )

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
        if self.spec.name is None:
            return None
        params = self.assignment.params
        return self.facts.tree(lambda fact: params[fact.path].decays and self.trains(fact))

    def trains(self, fact: ParamFact) -> bool:
        """Returns whether a parameter is trained."""
        return self.trainable is None or fact.path in self.trainable

    def init(self, seed: int | Key = 0) -> TrainState:
        """Returns the state before the first step: parameters as `module.init` makes them.

        Those that only evaluation asks for are among them, see `Recipe.facts`.

        Args:
            seed: an integer or a typed key; the parameters equal those of
                `module.init(key, ...)`.
        """
        key = jax.random.key(seed) if isinstance(seed, int) else seed
        variables = _initial(self, key)
        params = variables.pop("params", {})
        if self.adapters is not None:
            # A key of its own: the model starts as it would without adapters.
            own = jax.random.fold_in(key, zlib.crc32(LORA.encode()))
            params = join_adapters(params, self.adapters.init(own))
        return self.state(params, variables, key)

    def effective(self, params: Params) -> Params:
        """Returns the params that the model is applied to: adapters are merged in."""
        return params if self.adapters is None else self.adapters.lora.merge(params)

    @cached_property
    def unroll(self) -> bool:
        """Whether the loop over microbatches is written out.

        On CPU only, and for models with convolutions: XLA makes them ten times slower there
        inside of a loop.
        """
        return jax.default_backend() == "cpu" and self.probe.has_convolutions

    @cached_property
    def _apply_fn(self) -> Callable[..., Any]:
        if self.adapters is None:
            return self.module.apply
        return _AdaptedApply(self.module, self.adapters.lora)

    def state(self, params: Params, collections: Collections, rng: Key) -> TrainState:
        """Returns the state before the phase's first step, from parameters and collections."""
        state = TrainState.create(
            apply_fn=self._apply_fn,
            params=params,
            tx=self.tx,
            collections=collections,
            rng=rng,
            trainable=self.trainable,
            # A copy: the step is given the state to keep.
            loss_scale=jax.tree.map(jnp.copy, self.options.loss_scale),
        )
        if self.phase.with_slots == self.phase.trained.keys():
            return state
        return state.replace(opt_state=self.tx.init(split(params, self.phase.with_slots)[0]))

    def bind(
        self, state: TrainState, params: Params, *, train: bool, **rows: Any
    ) -> BoundModel:
        """Returns the model bound to `params` and to the rest of `state`."""
        return BoundModel(
            self.module,
            self.effective(params),
            state.collections,
            rng=state.rng,
            streams=self.streams,
            step=state.step,
            train=train,
            sown=self.sown,
            frozen=self.frozen,
            evaluation_error=self.probe.evaluation_error,
            **rows,
        )


@dataclass(frozen=True, eq=False)
class _AdaptedApply:
    """`module.apply` for variables with adapters.

    Flax itself takes no notice of params that no module asks for: on them, `module.apply` would
    silently be the model without its adapters.
    """

    module: nn.Module
    lora: LoRA

    def __call__(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns what `module.apply` returns, with the adapters merged in."""
        params = self.lora.merge(variables["params"])
        return self.module.apply({**variables, "params": params}, *args, **kwargs)


# Compiled once per recipe: a recipe is equal to itself only.
@partial(jax.jit, static_argnums=0)
def _initial(recipe: Recipe, key: Key) -> dict[str, Any]:
    return meta.unbox(recipe.probe.run_init(key).variables)


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
        ArgumentTypeError: `loss` is not of these kinds.
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
    if not jax.tree.leaves(batch):
        raise EmptyDatasetError("the batch holds no array", where="make_recipe(batch=...)")
    options = StepOptions() if options is None else options
    example = jax.tree.map(_shape_of, batch)
    options.check_rows(jax.tree.leaves(example)[0].shape[0])
    loss_fn, output = _resolve_loss(module, loss, example)
    if metrics is not None:
        loss_fn = CollectionLoss(loss_fn, metrics)
    probe = Probe(module, loss_fn, example)
    facts = probe.facts()
    bound = None if adapters is None else adapters.bind(facts, probe.initialise)
    if bound is not None:
        facts = bound.facts
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
        **_of_phase(assignment, assignment.phases[0], facts),
        streams=tuple(sorted({"dropout", *facts.rng_streams} - {"params"})),
        sown=probe.sown,
        padding_problem=probe.padding_problem(),
        example=example,
        probe=probe,
        output=output,
        options=options,
    )


def _of_phase(assignment: Assignment, phase: Phase, facts: Facts) -> dict[str, Any]:
    """Returns the fields of a recipe that differ between phases."""
    still = {path: (how.stats, how.mode) for path, how in phase.frozen.items()}
    everything = len(phase.trained) == len(facts)
    return {
        "phase": phase,
        "tx": transformation(assignment, phase),
        "trainable": None if everything else frozenset(phase.trained),
        "frozen": frozen_modules(facts, still),
    }


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
