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

from flaxtrain.checks import SEED_MAX, check_integer
from flaxtrain.errors import FlaxtrainError
from flaxtrain.optim import GradientTransformation
from flaxtrain.params import Adapters, Facts, LoRA, ParamFact, join_adapters
from flaxtrain.params.low_rank import LORA
from flaxtrain.precision import Rounding, rounding_rule
from flaxtrain.spec import (
    Assignment,
    OptSpec,
    Phase,
    carried,
    transformation,
)
from flaxtrain.train.accumulation import Accumulation, OneBatch, SeveralBatches
from flaxtrain.train.averages import Average, begin_average
from flaxtrain.train.cached_loss import CachedLoss
from flaxtrain.train.casting import Casts
from flaxtrain.train.contract import LossFn
from flaxtrain.train.frozen_calls import FrozenFeatures
from flaxtrain.train.frozen_modules import FrozenModules, frozen_modules
from flaxtrain.train.keys import step_key
from flaxtrain.train.model import BoundModel
from flaxtrain.train.options import StepOptions
from flaxtrain.train.probe import Probe
from flaxtrain.train.replicas import ONE_PROGRAM, Replicas
from flaxtrain.train.spike_window import spike_rule
from flaxtrain.train.state import TrainState
from flaxtrain.train.supervised import SupervisedLoss
from flaxtrain.train.with_collection import CollectionLoss
from flaxtrain.tree import Path, flatten, split, unflatten
from flaxtrain.typing import Batch, Collections, Key, Params

__all__ = ["Recipe"]


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
        casts: the dtypes in which parameters are stored and the model runs.
        replicas: which have the other rows of a batch, where a program sees a part of them.
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
    casts: Casts
    replicas: Replicas = ONE_PROGRAM
    _by_phase: dict[int, Recipe] = field(default_factory=dict, repr=False)
    _with_features: dict[Any, Recipe] = field(default_factory=dict, repr=False)

    def at(self, step: int) -> Recipe:
        """Returns the recipe of the phase that a step is in: always the same object."""
        phase = self.assignment.phase_at(step)
        known = self._by_phase
        known.setdefault(self.phase.index, self)
        if phase.index not in known:
            known[phase.index] = replace(self, **of_phase(self.assignment, phase, self.facts))
        return known[phase.index]

    def with_features(self, features: FrozenFeatures) -> Recipe:
        """Returns the recipe for batches that carry features: always the same object."""
        known, key = self._with_features, (self.phase.index, features)
        if key not in known:
            known[key] = self.changed(loss_fn=CachedLoss(self.loss_fn, features))
        return known[key]

    def changed(self, **fields: Any) -> Recipe:
        """Returns a recipe with other fields, in every phase: no other recipe goes with it."""
        return replace(self, **fields, _by_phase={}, _with_features={})

    def enter(self, state: TrainState) -> TrainState:
        """Returns a state of the phase before as one of this recipe's phase.

        Slots of parameters that were trained before, or kept theirs, go on; those of parameters
        that thaw are fresh.
        """
        state = self._rounding(state)
        fresh = self._slots(state.params, state.rounding_carry)
        return self._accumulating(
            state.replace(
                opt_state=carried(fresh, state.opt_state), tx=self.tx, trainable=self.trainable
            )
        )

    def _rounding(self, state: TrainState) -> TrainState:
        """Returns a state with what rounding keeps: as it was, or fresh where it thaws."""
        trained = self._trained(state.params)
        fresh, old = (
            flatten(self.rounding.init(trained, trained)),
            flatten(state.rounding_carry),
        )
        carry = {path: old.get(path, leaf) for path, leaf in fresh.items()}
        return state.replace(rounding_carry=unflatten(carry))

    def _slots(self, params: Params, carry: Params) -> Any:
        """Returns the optimizer's state before the first update of the phase."""
        return self.tx.init(self.rounding.exact(split(params, self.phase.with_slots)[0], carry))

    def _trained(self, params: Params) -> Params:
        return params if self.trainable is None else split(params, self.trainable)[0]

    @property
    def rounding(self) -> Rounding:
        """How updates are added to parameters of 16 bits."""
        return rounding_rule(self.casts.precision.update)

    def _accumulating(self, state: TrainState) -> TrainState:
        """Returns a state in which no update has been begun."""
        sums = self.accumulation.init(state.split_params()[0], lambda: self.probe.terms)
        return state.replace(accumulated=sums)

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
        return self.state(*self.initial(seed))

    def initial(self, seed: int | Key = 0) -> tuple[Params, dict[str, Any], Key]:
        """Returns what `state` takes: parameters as they are made, collections, and the key.

        Args:
            seed: as for `init`.
        """
        if not isinstance(seed, jax.Array):
            check_integer("seed", seed, minimum=0, maximum=SEED_MAX, where="Recipe.init")
        key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
        variables = _initial(self, key)
        params = variables.pop("params", {})
        if self.adapters is not None:
            # A key of its own: the model starts as it would without adapters.
            own = jax.random.fold_in(key, zlib.crc32(LORA.encode()))
            params = join_adapters(params, self.adapters.init(own))
        return params, variables, key

    def effective(self, params: Params) -> Params:
        """Returns the params that the model is applied to: adapters are merged in."""
        return params if self.adapters is None else self.adapters.lora.merge(params)

    @cached_property
    def accumulation(self) -> Accumulation:
        """What becomes of the gradients of batches: an update each, or of several one."""
        count = self.spec.accumulation.count
        return OneBatch() if count == 1 else SeveralBatches(count)

    @cached_property
    def unroll(self) -> bool:
        """Whether loops over microbatches, and over the steps of a call, are written out.

        On CPU only, and for models with convolutions: XLA makes them several times slower there
        inside of a loop.
        """
        return jax.default_backend() == "cpu" and self.probe.has_convolutions

    @cached_property
    def _apply_fn(self) -> Callable[..., Any]:
        if self.adapters is None:
            return self.module.apply
        return _AdaptedApply(self.module, self.adapters.lora)

    def state(self, params: Params, collections: Collections, rng: Key) -> TrainState:
        """Returns the state before the phase's first step, from parameters and collections.

        Args:
            params: the parameters, as precise as they are known.
            collections: the collections.
            rng: the run's typed key.
        """
        stored = self.casts.stored(params)
        carry = self.rounding.init(self._trained(params), self._trained(stored))
        state = TrainState.create(
            apply_fn=self._apply_fn,
            params=stored,
            tx=self.tx,
            collections=collections,
            rng=rng,
            trainable=self.trainable,
            # A copy: the step is given the state to keep.
            loss_scale=jax.tree.map(jnp.copy, self.options.loss_scale),
            ema=self.begin_average(jax.tree.map(_in_full, params, stored), collections),
            spikes=spike_rule(self.spec.spikes),
            rounding=self.rounding,
            rounding_carry=carry,
        )
        state = self._accumulating(state)
        if self.phase.with_slots == self.phase.trained.keys():
            return state
        return state.replace(opt_state=self._slots(stored, carry))

    def begin_average(self, params: Params, collections: Collections) -> Average:
        """Returns the average of all weights that the run ever trains, beginning here."""
        averaged = self.assignment.ever_trained
        return begin_average(self.spec.ema, params, collections, averaged)

    def bind(
        self,
        state: TrainState,
        params: Params,
        *,
        train: bool,
        key: Key | None = None,
        **rows: Any,
    ) -> BoundModel:
        """Returns the model bound to `params` and to the rest of `state`.

        Args:
            state: collections, and the step.
            params: the whole tree of parameters.
            train: whether this is training.
            key: of the microbatch; default that of the step.
            **rows: which rows count, as `BoundModel` takes them.
        """
        return BoundModel(
            self.module,
            self.effective(params),
            state.collections,
            rng=step_key(state.rng, state.step) if key is None else key,
            streams=self.streams,
            train=train,
            sown=self.sown,
            frozen=self.frozen,
            evaluation_error=self.probe.evaluation_error,
            casts=self.casts,
            replicas=self.replicas,
            **rows,
        )


def _in_full(value: Any, stored: Any) -> Any:
    """Returns a value before it was rounded to what is stored, in float32 or what is wider."""
    return value.astype(jnp.promote_types(stored.dtype, jnp.float32))


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


def of_phase(assignment: Assignment, phase: Phase, facts: Facts) -> dict[str, Any]:
    """Returns the fields of a recipe that differ between phases."""
    still = {path: (how.stats, how.mode) for path, how in phase.frozen.items()}
    everything = len(phase.trained) == len(facts)
    return {
        "phase": phase,
        "tx": transformation(assignment, phase),
        "trainable": None if everything else frozenset(phase.trained),
        "frozen": frozen_modules(facts, still),
    }
