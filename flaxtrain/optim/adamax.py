"""Adamax: Adam with the largest recent gradient in place of the mean square.

Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 2.
Loshchilov & Hutter 2017, arXiv:1711.05101 (decoupled weight decay, `adamaxw`).

For one array, gradient g, t = 1, 2, ...:
    mu <- b1 mu + (1 - b1) g        nu <- max(b2 nu, |g| + eps)
    u = (mu / (1 - b1^t)) / nu
The paper has no epsilon; here it keeps the denominator positive. nu needs no correction: a
maximum is not pulled towards its start at zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.adam import AdamSlots, ScaleByAdamState
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    bias_correction,
    check_decays,
    debiased,
    moving_average,
    value,
)
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule

__all__ = ["Adamax", "AdamaxScalars", "adamax", "adamax_rule", "adamaxw", "scale_by_adamax"]


class AdamaxScalars(NamedTuple):
    """What depends on the step: the bias correction of mu."""

    mu: Array


@rule
class Adamax(Rule):
    """Adamax for one array.

    Attributes:
        b1: decay of mu.
        b2: decay of the maximum nu.
        eps: added to the magnitude of every gradient.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: ArrayLike = 1e-8

    Slots = AdamSlots

    def init(self, param: Array) -> AdamSlots:
        """Returns a zero moment and a zero maximum."""
        return AdamSlots(jnp.zeros_like(param), jnp.zeros_like(param))

    def scalars(self, t: Array) -> AdamaxScalars:
        """Returns the bias correction."""
        return AdamaxScalars(bias_correction(self.b1, t))

    def update(
        self, grad: Array, slots: AdamSlots, param: Array | None, scalars: AdamaxScalars
    ) -> tuple[Array, AdamSlots]:
        """Returns the direction `u`, and the new moment and maximum."""
        mu = moving_average(self.b1, grad, slots.mu)
        nu = jnp.maximum(jnp.abs(grad) + self.eps, value(self.b2) * slots.nu)
        return debiased(mu, scalars.mu) / nu, AdamSlots(mu, nu)


@answering
def adamax_rule(b1: Decay = 0.9, b2: Decay = 0.999, eps: ArrayLike = 1e-8) -> Adamax:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: added to the magnitude of every gradient, >= 0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> adamax_rule(b2=0.99)
        Adamax(b1=0.9, b2=0.99, eps=1e-08)
    """
    check_decays(b1=b1, b2=b2, where="adamax")
    check_number("eps", eps, minimum=0.0, where="adamax")
    return Adamax(b1, b2, eps)


@named
def scale_by_adamax(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Adamax's direction `u` (not negated).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: added to the magnitude of every gradient, >= 0.
        state_dtype: dtype in which both slots are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdamState`, with the maximum in `nu`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_adamax(b2=0.5)
        >>> state = tx.init(jnp.float32(1.0))
        >>> for grad in (8.0, 1.0):
        ...     updates, state = tx.update(jnp.float32(grad), state)
        >>> print(state.nu)
        4.0

    Source:
        Kingma & Ba 2014, Algorithm 2.
    """
    rule = adamax_rule(b1, b2, eps)
    state_dtype = check_dtype("state_dtype", state_dtype, where="scale_by_adamax")
    return per_leaf(rule, state=ScaleByAdamState, state_dtype=state_dtype)


@named
def adamax(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adamax: the average gradient divided by the largest recent one.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: added to the magnitude of every gradient, >= 0.
        state_dtype: as for `scale_by_adamax`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adamax(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9

    Source:
        Kingma & Ba 2014, Algorithm 2.
    """
    check_learning_rate(learning_rate, where="adamax")
    return chain(
        scale_by_adamax(b1, b2, eps, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )


@named
def adamaxw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: Mask | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adamax with decoupled weight decay, added before the learning rate as in `adamw`.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: added to the magnitude of every gradient, >= 0.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        state_dtype: as for `scale_by_adamax`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adamaxw(0.1, weight_decay=0.5), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x), x)
        >>> print(round(float(x + updates), 4))
        0.85

    Source:
        Kingma & Ba 2014, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.
    """
    check_learning_rate(learning_rate, where="adamaxw")
    parts = chain(
        scale_by_adamax(b1, b2, eps, state_dtype=state_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
