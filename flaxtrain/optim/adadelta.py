"""Adadelta: steps in the unit of the parameters, from two moving averages.

Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1.

For one array and gradient g, from E[g^2] = E[dx^2] = 0:
    e_g <- rho e_g + (1 - rho) |g|^2
    u    = sqrt(e_x + eps) / sqrt(e_g + eps) g
    e_x <- rho e_x + (1 - rho) |u|^2
The paper's step is -u: a learning rate of 1. Weight decay is added to the gradient in front of
all that, so it is L2 regularization and not decoupled.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    check_decays,
    check_epsilons,
    moving_average,
    squared_magnitude,
)
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "AdaDelta",
    "AdaDeltaSlots",
    "ScaleByAdaDeltaState",
    "adadelta",
    "adadelta_stages",
    "scale_by_adadelta",
]


class AdaDeltaSlots(NamedTuple):
    """Moving averages of the squared gradient and of the squared update."""

    e_g: Array
    e_x: Array


class ScaleByAdaDeltaState(NamedTuple):
    """The two moving averages, trees like the parameters."""

    e_g: Updates
    e_x: Updates


@rule
class AdaDelta(Rule):
    """Adadelta for one array.

    Attributes:
        rho: decay of both averages.
        eps: added under both roots; it also sets the size of the first steps.
    """

    rho: Decay = 0.9
    eps: ArrayLike = 1e-6

    Slots = AdaDeltaSlots

    def init(self, param: Array) -> AdaDeltaSlots:
        """Returns zero averages."""
        return AdaDeltaSlots(jnp.zeros_like(param), jnp.zeros_like(param))

    def update(
        self, grad: Array, slots: AdaDeltaSlots, param: Array | None, scalars: None
    ) -> tuple[Array, AdaDeltaSlots]:
        """Returns the direction `u` and the new averages."""
        e_g = moving_average(self.rho, squared_magnitude(grad), slots.e_g)
        u = jnp.sqrt(slots.e_x + self.eps) / jnp.sqrt(e_g + self.eps) * grad
        e_x = moving_average(self.rho, squared_magnitude(u), slots.e_x)
        return u, AdaDeltaSlots(e_g, e_x)


def _rule(rho: Decay, eps: ArrayLike) -> AdaDelta:
    check_decays(rho=rho, where="adadelta")
    check_epsilons(eps=eps, where="adadelta")
    return AdaDelta(rho, eps)


@answering
def adadelta_stages(rho: Decay = 0.9, eps: ArrayLike = 1e-6) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `adadelta`), after checking them.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> adadelta_stages(rho=0.95)[1]
        AdaDelta(rho=0.95, eps=1e-06)
    """
    return DECAY, _rule(rho, eps), RATE


@named
def scale_by_adadelta(
    rho: ArrayLike = 0.9, eps: ArrayLike = 1e-6, *, state_dtype: DTypeLike | None = None
) -> GradientTransformation:
    """Makes the transformation from gradients to Adadelta's direction `u` (not negated).

    Args:
        rho: decay of both averages, in [0, 1).
        eps: added under both roots, >= 0; with 0 nothing ever moves.
        state_dtype: dtype in which both averages are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdaDeltaState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_adadelta(rho=0.75, eps=1e-4)
        >>> updates, state = tx.update(jnp.float32(2.0), tx.init(jnp.float32(0.0)))
        >>> print(round(float(updates), 4), round(float(state.e_x), 7))
        0.02 0.0001
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_adadelta")
    return per_leaf(_rule(rho, eps), state=ScaleByAdaDeltaState, state_dtype=state_dtype)


@named
def adadelta(
    learning_rate: ArrayLike | Schedule | None = None,
    rho: ArrayLike = 0.9,
    eps: ArrayLike = 1e-6,
    weight_decay: ArrayLike | Schedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adadelta: gradients times the ratio of the sizes of past updates and past gradients.

    Args:
        learning_rate: a number >= 0 (the paper's is 1.0), or a schedule of the number of
            updates already applied. None: updates are not multiplied, and not negated either,
            so that adding them goes uphill.
        rho: decay of both averages, in [0, 1).
        eps: added under both roots, >= 0.
        weight_decay: a number >= 0, or a schedule: `weight_decay * params` is added to the
            gradients in front of everything else.
        weight_decay_mask: a tree of bools like the parameters or a prefix of it, or a function
            from the parameters to one: which of them decay. None: all.
        state_dtype: as for `scale_by_adadelta`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adadelta(1.0), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x), x)
        >>> print(round(float(x + updates), 4))
        0.9968
    """
    if learning_rate is not None:
        check_learning_rate(learning_rate, where="adadelta")
    parts = chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
