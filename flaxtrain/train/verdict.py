"""Whether a step is accepted, and what is counted: decided on the device, once for each batch.

tried   the batch has weight, and the run is not halted
finite  loss, weights, gradient norm and every new collection
spike   finite, but far above the usual (`OptSpec(spikes=)`)
accept  tried, finite and no spike
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.metrics import Terms
from flaxtrain.spec import OptSpec
from flaxtrain.train.state import Counters, TrainState
from flaxtrain.tree import all_finite
from flaxtrain.typing import Array, ArrayLike, Collections

__all__ = ["Verdict", "accepted", "counters_after", "halts", "verdict"]


class Verdict(NamedTuple):
    """What was decided about a step; bool scalars.

    Attributes:
        tried: whether there was a step to make: the batch has weight, the run goes on.
        finite: whether loss, weights, gradient norm and collections are finite.
        spike: whether a finite step is rejected by the spike rule.
    """

    tried: Array
    finite: Array
    spike: Array

    @property
    def accept(self) -> Array:
        """Whether the update is made."""
        return self.tried & self.finite & ~self.spike

    @property
    def bad(self) -> Array:
        """Whether there was a step to make, and it is rejected."""
        return self.tried & ~self.accept


def accepted() -> Verdict:
    """Returns the verdict on an accepted step: known where it is traced, so that it folds."""
    return Verdict(tried=jnp.array(True), finite=jnp.array(True), spike=jnp.array(False))


def verdict(
    state: TrainState,
    loss: Terms,
    grad_norm: Array,
    collections: Collections,
    examples: ArrayLike = 1,
) -> Verdict:
    """Decides about a step.

    A weight that is NaN, infinite or negative in total makes a step that is not finite; one of
    0 is a batch that holds nothing.

    Args:
        state: the state before.
        loss: of the batch, with its weights.
        grad_norm: the norm of the gradient, without the loss scale; a scalar.
        collections: the collections after the batch.
        examples: number of real rows in the batch; without any, a regulariser makes no update.

    Example:
        >>> from flaxtrain.metrics import Mean
        >>> from flaxtrain import optim
        >>> state = TrainState.create(apply_fn=None, params={}, tx=optim.sgd(0.1))
        >>> for weight in (2.0, 0.0, -2.0):
        ...     loss = Terms((Mean(jnp.array(1.0), jnp.array(weight)),))
        ...     found = verdict(state, loss, jnp.array(1.0), {})
        ...     print(weight, bool(found.accept), bool(found.bad))
        2.0 True False
        0.0 False False
        -2.0 False True
    """
    weights = jnp.stack([jnp.asarray(term.weight, jnp.float32) for term in loss.terms])
    valid = jnp.all(jnp.isfinite(weights) & (weights >= 0))
    value = loss.compute()
    finite = valid & jnp.isfinite(value) & jnp.isfinite(grad_norm) & all_finite(collections)
    holds = (jnp.any(weights > 0) | ~valid) & (jnp.asarray(examples) > 0)
    return Verdict(
        tried=holds & (state.counters.halted == 0),
        finite=finite,
        spike=finite & state.spikes.is_spike(value, grad_norm),
    )


def halts(spec: OptSpec, counters: Counters, found: Verdict, at_minimum: ArrayLike) -> Array:
    """Returns whether the run ends with this step, a bool scalar.

    Args:
        spec: its `nonfinite` and `max_skips`.
        counters: before the step.
        found: what was decided about the step.
        at_minimum: whether the loss scale that was used can't be lowered. As long as it can, an
            overflow is answered by a lower scale.
    """
    at_once = jnp.array(spec.nonfinite == "raise") & ~found.finite
    too_often = jnp.array(False)
    if spec.max_skips is not None:
        too_often = counters.consecutive_skipped + 1 >= spec.max_skips
    final = jnp.asarray(at_minimum) | found.finite
    return found.bad & final & (at_once | too_often)


def counters_after(
    counters: Counters, found: Verdict, examples: Array, halted: Array
) -> Counters:
    """Returns the counters after a step.

    Args:
        counters: before it.
        found: what was decided about it.
        examples: number of real rows in its batch, an int32 scalar.
        halted: whether the run ends with it.
    """
    most = jnp.iinfo(jnp.int32).max
    seen = jnp.where(found.accept, examples, 0)
    return Counters(
        # No halted step is accepted; the left side is there for `accepted()`, with which the
        # compiler makes + 1 of the sum.
        batches=counters.batches + (found.accept | (counters.halted == 0)),
        examples=jnp.where(counters.examples > most - seen, most, counters.examples + seen),
        skipped=counters.skipped + found.bad,
        spikes=counters.spikes + (found.bad & found.finite),
        consecutive_skipped=jnp.where(
            found.accept, 0, counters.consecutive_skipped + found.bad
        ),
        halted=counters.halted | halted,
    )
