"""Weight decay: a share of the parameter added to its update.

Loshchilov & Hutter 2017, arXiv:1711.05101, Algorithm 2. Placed between the preconditioner and
the learning rate, it shrinks parameters by `learning_rate * weight_decay` at each step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import Mask, masked
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named, require_params
from flaxtrain.tree import is_none
from flaxtrain.typing import ArrayLike, OptState, Params, Schedule, Updates

__all__ = ["WeightDecaySchedule", "add_decayed_weights"]


class WeightDecaySchedule(NamedTuple):
    """Number of updates, int32: what the schedule of the decay is asked for next."""

    count: Any  # an Array


@named
def add_decayed_weights(
    weight_decay: ArrayLike | Schedule = 0.0, mask: Mask | None = None
) -> GradientTransformation:
    """Makes the transformation that adds `weight_decay * params` to the updates.

    Args:
        weight_decay: a number >= 0, or a schedule of the number of updates already applied. The
            Python number 0.0 leaves updates untouched, at no cost.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.

    Returns:
        A transformation without state; for a schedule, with a `WeightDecaySchedule`; with a
        mask, inside a `MaskedState`. Its `update` needs the parameters.

    Raises:
        ArgumentError: `weight_decay` is negative, NaN or infinite.
        ArgumentTypeError: `weight_decay` or `mask` has the wrong type.

    Example:
        >>> tx = add_decayed_weights(0.1)
        >>> updates, state = tx.update(jnp.float32(1.0), tx.init(None), jnp.float32(5.0))
        >>> print(updates)
        1.5
    """
    if callable(weight_decay):
        decayed = _scheduled(weight_decay)
    else:
        check_number("weight_decay", weight_decay, minimum=0.0, where="add_decayed_weights")
        decayed = _constant(weight_decay)
    return decayed if mask is None else masked(decayed, mask)


def _constant(weight_decay: ArrayLike) -> GradientTransformation:
    is_off = isinstance(weight_decay, (int, float)) and weight_decay == 0.0

    def init(params: Params, /) -> EmptyState:
        return EmptyState()

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        require_params(params, "weight decay")
        return updates if is_off else _add(updates, weight_decay, params), state

    return GradientTransformation(init, update)


def _scheduled(weight_decay: Schedule) -> GradientTransformation:
    def init(params: Params, /) -> WeightDecaySchedule:
        return WeightDecaySchedule(jnp.zeros([], jnp.int32))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, WeightDecaySchedule]:
        require_params(params, "weight decay")
        new = _add(updates, weight_decay(state.count), params)
        return new, WeightDecaySchedule(safe_increment(state.count))

    return GradientTransformation(init, update)


def _add(updates: Updates, weight_decay: ArrayLike, params: Params) -> Updates:
    def add(update: ArrayLike | None, param: ArrayLike | None) -> ArrayLike | None:
        return update if update is None or param is None else update + weight_decay * param

    return jax.tree.map(add, updates, params, is_leaf=is_none)
