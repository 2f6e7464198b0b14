"""The training state: everything that changes in a run, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from flaxtrain.optim import apply_updates, with_extra_args
from flaxtrain.precision import UNSCALED, LossScale
from flaxtrain.spec import applied_learning_rates
from flaxtrain.tree import Path, flatten, graft, split
from flaxtrain.typing import Array, ArrayLike, Collections, Key, OptState, Params, Updates

__all__ = ["Counters", "TrainState"]


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


class Counters(struct.PyTreeNode):
    """What a run has seen, beside its one clock `TrainState.step`. All int32 scalars.

    Attributes:
        batches: batches consumed, accepted or not.
        examples: examples in accepted batches, padding not counted; stops at 2^31 - 1.
        skipped: steps rejected because something was not finite.
        consecutive_skipped: such steps since the last accepted one.
        halted: 1 once `nonfinite="raise"` has met a bad step: every later step is rejected, so
            that the state the host finds is the last good one.
    """

    batches: Array = struct.field(default_factory=_zero)
    examples: Array = struct.field(default_factory=_zero)
    skipped: Array = struct.field(default_factory=_zero)
    consecutive_skipped: Array = struct.field(default_factory=_zero)
    halted: Array = struct.field(default_factory=_zero)


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
            **kwargs: fields of a subclass.
        """
        tx_init = with_extra_args(tx).init
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections={} if collections is None else collections,
            opt_state=tx_init(params if trainable is None else split(params, trainable)[0]),
            loss_scale=loss_scale,
            rng=jax.random.key(rng) if isinstance(rng, int) else rng,
            counters=Counters(),
            apply_fn=apply_fn,
            tx=tx,
            trainable=trainable,
            **kwargs,
        )

    def split_params(self) -> tuple[Params, Params]:
        """Returns the trainable and the frozen part of `params`; the second may be empty."""
        return (
            (self.params, {}) if self.trainable is None else split(self.params, self.trainable)
        )

    def updated(self, grads: Updates, **extra_args: ArrayLike) -> tuple[TrainState, Updates]:
        """Makes one optimizer update; returns the new state and the updates that were added.

        Args:
            grads: gradients of the trainable parameters, or of all of them.
            **extra_args: what `tx` may ask for beside gradients, such as `value`.
        """
        trainable, frozen = self.split_params()
        if frozen and flatten(grads).keys() != flatten(trainable).keys():
            grads = split(grads, flatten(trainable).keys())[0]
        update = with_extra_args(self.tx).update
        updates, opt_state = update(grads, self.opt_state, trainable, **extra_args)
        params = apply_updates(trainable, updates)
        if frozen:
            # Kept in its own kind of tree: params may be a FrozenDict.
            leaves = jax.tree.leaves(graft(params, frozen))
            params = jax.tree.unflatten(jax.tree.structure(self.params), leaves)
        return (
            self.replace(
                step=self.step + 1,
                params=params,
                opt_state=opt_state,
            ),
            updates,
        )

    def apply_gradients(self, *, grads: Updates, **kwargs: Any) -> TrainState:
        """Updates `step`, `params` and `opt_state` from gradients, as flax's `TrainState` does.

        Args:
            grads: a tree like `params`, or like its trainable part.
            **kwargs: further fields to replace, such as `collections`.
        """
        return self.updated(grads)[0].replace(**kwargs)

    def resumable(self) -> TrainState:
        """Returns the state with the latch of `nonfinite="raise"` lifted, for the next run."""
        counters = self.counters.replace(halted=_zero(), consecutive_skipped=_zero())
        return self.replace(counters=counters)

    @property
    def learning_rates(self) -> dict[str, Array | None]:
        """The learning rates that the last update applied, by group; None where unknown."""
        return applied_learning_rates(self.opt_state, self.tx)
