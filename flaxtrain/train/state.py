"""The training state: everything that changes in a run, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from flaxtrain.checks import check_instance
from flaxtrain.optim import apply_updates, with_extra_args
from flaxtrain.precision import NEAREST, UNSCALED, LossScale, Rounding
from flaxtrain.spec import applied_learning_rates
from flaxtrain.train.averages import NO_AVERAGE, Average
from flaxtrain.train.keys import fold_key
from flaxtrain.train.spike_window import NO_SPIKES, SpikeRule
from flaxtrain.tree import Path, flatten, graft, split
from flaxtrain.typing import Array, Collections, Key, OptState, Params, Updates

__all__ = ["Counters", "TrainState", "eval_params", "eval_state"]


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


class Counters(struct.PyTreeNode):
    """What a run has seen, beside its one clock `TrainState.step`. All int32 scalars.

    Attributes:
        batches: batches consumed, accepted or not.
        examples: examples in accepted batches, padding not counted; stops at 2^31 - 1.
        skipped: rejected steps: something was not finite, or a value was a spike.
        spikes: those of them whose loss, gradient and collections were finite.
        consecutive_skipped: rejected steps since the last accepted one.
        halted: 1 once `nonfinite="raise"` has met a bad step, or `max_skips` was reached: every
            later step is rejected, so that the state the host finds is the last good one.
    """

    batches: Array = struct.field(default_factory=_zero)
    examples: Array = struct.field(default_factory=_zero)
    skipped: Array = struct.field(default_factory=_zero)
    spikes: Array = struct.field(default_factory=_zero)
    consecutive_skipped: Array = struct.field(default_factory=_zero)
    halted: Array = struct.field(default_factory=_zero)

    @property
    def not_finite(self) -> Array:
        """Rejected steps that were not finite: all but the spikes."""
        return self.skipped - self.spikes


class TrainState(struct.PyTreeNode):
    """State of a training run, with the field names and methods of flax's own `TrainState`.

    Attributes:
        step: int32 scalar, the number of optimizer updates made so far. The only clock.
        params: the whole tree of parameters, trainable and frozen.
        collections: Linen's mutable collections, such as `{"batch_stats": ...}`.
        opt_state: the state of `tx` over the trainable parameters.
        loss_scale: the loss scale.
        rng: typed PRNG key, the root of all randomness; never changes, keys are folded from it.
        counters: what was seen and skipped.
        apply_fn: `module.apply`.
        tx: the gradient transformation, ours or any with `init` and `update`.
        trainable: the paths that `tx` sees; None means all.
        accumulated: the batches of the update in progress, where several make one.
        ema: the average of the weights.
        spikes: the spike rule, with the values that it compares with.
        rounding: how updates are added to parameters of 16 bits.
        rounding_carry: what `rounding` keeps beside trained parameters of 16 bits: nested dicts
            of float32 copies, say; empty where it keeps nothing.

    Example:
        >>> from flaxtrain import optim
        >>> params = {"w": jnp.array([1.0])}
        >>> state = TrainState.create(apply_fn=None, params=params, tx=optim.sgd(0.1))
        >>> state = state.apply_gradients(grads={"w": jnp.array([2.0])})
        >>> print(state.params["w"], state.step)
        [0.8] 1
    """

    step: Array
    params: Params
    collections: Collections
    opt_state: OptState
    loss_scale: LossScale
    rng: Key
    counters: Counters
    apply_fn: Callable[..., Any] | None = struct.field(pytree_node=False)
    tx: Any = struct.field(pytree_node=False)
    trainable: frozenset[Path] | None = struct.field(pytree_node=False, default=None)
    accumulated: Any = ()
    ema: Average = NO_AVERAGE
    spikes: SpikeRule = NO_SPIKES
    rounding: Rounding = struct.field(pytree_node=False, default=NEAREST)
    rounding_carry: Params = struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        *,
        apply_fn: Callable[..., Any] | None,
        params: Params,
        tx: Any,
        collections: Collections | None = None,
        rng: Key | int = 0,
        trainable: frozenset[Path] | None = None,
        loss_scale: LossScale = UNSCALED,
        rounding: Rounding = NEAREST,
        rounding_carry: Params | None = None,
        **kwargs: Any,
    ) -> TrainState:
        """Returns the state before the first step.

        Args:
            apply_fn: usually `module.apply`; kept for flax code that reads it.
            params: nested dicts of arrays.
            tx: a gradient transformation.
            collections: mutable collections; default none.
            rng: a typed PRNG key, or a seed.
            trainable: the paths that are trained; default all.
            loss_scale: the loss scale; default none.
            rounding: how updates are added to parameters of 16 bits; default to nearest.
            rounding_carry: what it keeps; default what `rounding` begins with.
            **kwargs: further fields, such as `spikes`, or those of a subclass.
        """
        tx_init = with_extra_args(tx).init
        trained = params if trainable is None else split(params, trainable)[0]
        if rounding_carry is None:
            rounding_carry = rounding.init(trained, trained)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections={} if collections is None else collections,
            opt_state=tx_init(rounding.exact(trained, rounding_carry)),
            loss_scale=loss_scale,
            rng=jax.random.key(rng) if isinstance(rng, int) else rng,
            counters=Counters(),
            apply_fn=apply_fn,
            tx=tx,
            trainable=trainable,
            rounding=rounding,
            rounding_carry=rounding_carry,
            **kwargs,
        )

    def split_params(self) -> tuple[Params, Params]:
        """Returns the trainable and the frozen part of `params`; the second may be empty."""
        return (
            (self.params, {}) if self.trainable is None else split(self.params, self.trainable)
        )

    def updated(self, grads: Updates, **extra_args: Any) -> tuple[TrainState, Updates]:
        """Makes one optimizer update; returns the new state and the updates that were added.

        Args:
            grads: gradients of the trainable parameters, or of all of them.
            **extra_args: what `tx` may ask for beside gradients, such as `value`.
        """
        trainable, frozen = self.split_params()
        if frozen and flatten(grads).keys() != flatten(trainable).keys():
            grads = split(grads, flatten(trainable).keys())[0]
        update = with_extra_args(self.tx).update
        exact = self.rounding.exact(trainable, self.rounding_carry)
        updates, opt_state = update(grads, self.opt_state, exact, **extra_args)
        stored = self._stored(apply_updates(exact, updates), "rounding")
        return stored.replace(step=self.step + 1, opt_state=opt_state), updates

    def _stored(self, exact: Params, stream: str) -> TrainState:
        """Returns the state with other trained parameters, rounded to what they are stored in.

        Args:
            exact: the trained parameters, as `rounding.exact` has them.
            stream: name of the random stream of this rounding.
        """
        trainable, frozen = self.split_params()
        params, carry = self.rounding.stored(
            exact, trainable, lambda: fold_key(self.rng, stream, self.step)
        )
        return self.replace(params=self.joined(params, frozen), rounding_carry=carry)

    def joined(self, trainable: Params, frozen: Params) -> Params:
        """Returns a tree like `params` from the two parts that `split_params` returns."""
        if not frozen:
            return trainable
        # Kept in its own kind of tree: params may be a FrozenDict.
        leaves = jax.tree.leaves(graft(trainable, frozen))
        return jax.tree.unflatten(jax.tree.structure(self.params), leaves)

    def apply_gradients(self, *, grads: Updates, **kwargs: Any) -> TrainState:
        """Updates `step`, `params` and `opt_state` from gradients, as flax's `TrainState` does.

        Where there is an average of the weights, it is updated too.

        Args:
            grads: a tree like `params`, or like its trainable part.
            **kwargs: further fields to replace, such as `collections`.
        """
        return self.updated(grads)[0].replace(**kwargs).averaged()

    def averaged(self) -> TrainState:
        """Returns the state after an update with its average of the weights brought up to date.

        Lookahead also sets the trained weights back. All else stays.
        """
        exact = self.exact_params
        ema, moved = self.ema.update(exact, self.collections, self.step, self.trainable)
        state = self.replace(ema=ema)
        if moved is exact:
            return state
        if self.trainable is not None:
            moved = split(moved, self.trainable)[0]
        return state._stored(moved, "rounding/averaged")

    @property
    def exact_params(self) -> Params:
        """The parameters as precisely as they are known: with what `rounding` keeps of them."""
        trainable, frozen = self.split_params()
        return self.joined(self.rounding.exact(trainable, self.rounding_carry), frozen)

    def resumable(self) -> TrainState:
        """Returns the state with which the next run begins.

        After a halt it accepts steps again, and the streak of rejected batches begins at 0.
        """
        skips = jnp.where(self.counters.halted > 0, 0, self.counters.consecutive_skipped)
        counters = self.counters.replace(halted=_zero(), consecutive_skipped=skips)
        return self.replace(counters=counters)

    @property
    def learning_rates(self) -> dict[str, Array | None]:
        """The learning rates that the last update applied, by group; None where unknown."""
        return applied_learning_rates(self.opt_state, self.tx)


def eval_state(state: TrainState) -> TrainState:
    """Returns a state that evaluates with the averaged weights, to be given to `eval_step`.

    Args:
        state: a training state. It stays as it is; go on training with it.

    Returns:
        The state with averaged parameters and collections in the place of the trained ones, in
        the same structure and dtypes, so that a compiled evaluation serves both. Without an
        average, or before `Swa` begins, they are the trained ones. Arrays may be shared with
        `state`, and are gone when that is donated to the next step.

    Raises:
        ArgumentTypeError: `state` is no `TrainState`.
    """
    return _evaluated(state, "eval_state")


def eval_params(state: TrainState) -> Params:
    """Returns the parameters to evaluate with: the averaged ones, if there is an average.

    Args:
        state: a training state; it stays as it is.

    Returns:
        A tree like `state.params`, see `eval_state`. A model with BatchNorm also needs the
        averaged statistics: `eval_state(state).collections`.

    Raises:
        ArgumentTypeError: `state` is no `TrainState`.

    Example:
        >>> from flaxtrain import optim
        >>> from flaxtrain.spec import Ema
        >>> from flaxtrain.train.averages import begin_average
        >>> params = {"w": jnp.array([1.0])}
        >>> ema = begin_average(Ema(0.5, warmup=False), params, {})
        >>> tx = optim.sgd(1.0)
        >>> state = TrainState.create(apply_fn=None, params=params, tx=tx, ema=ema)
        >>> state = state.apply_gradients(grads={"w": jnp.array([-2.0])})
        >>> print(state.params["w"], eval_params(state)["w"])
        [3.] [2.]
    """
    return _evaluated(state, "eval_params").params


def _evaluated(state: TrainState, where: str) -> TrainState:
    fix = "pass the whole training state, such as trainer.state after a fit"
    check_instance("state", state, TrainState, where=where, fix=fix, show=False)
    params, collections = state.ema.weights(state.params, state.collections)
    return state.replace(params=params, collections=collections)
