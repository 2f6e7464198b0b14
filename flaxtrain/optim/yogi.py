"""Yogi: Adam with a second moment that changes by bounded amounts.

Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018, Algorithm 2.

For one array, gradient g, t = 1, 2, ..., both moments starting at `initial_accumulator_value`:
    mu <- b1 mu + (1 - b1) g        nu <- nu - (1 - b2) sign(nu - |g|^2) |g|^2
    u = (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)
In the paper mu starts at zero and there are no bias corrections; Optax's variant, followed
here, has both differences. So the very first directions are a little positive even where the
gradient is zero: 3e-4 with the defaults, to be multiplied by the learning rate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.adam import AdamSlots, ScaleByAdamState
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    bias_correction,
    check_decays,
    check_epsilons,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
)
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule

__all__ = ["Yogi", "YogiScalars", "scale_by_yogi", "yogi", "yogi_rule"]


class YogiScalars(NamedTuple):
    """What depends on the step: bias corrections of mu and nu."""

    mu: Array
    nu: Array


@rule
class Yogi(Rule):
    """Yogi for one array.

    Attributes:
        b1: decay of mu.
        b2: 1 - b2 is the largest relative change of nu towards zero.
        eps: added to the denominator.
        eps_root: added under the root.
        initial_accumulator_value: where both moments start.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: ArrayLike = 1e-3
    eps_root: ArrayLike = 0.0
    initial_accumulator_value: ArrayLike = 1e-6

    Slots = AdamSlots

    def init(self, param: Array) -> AdamSlots:
        """Returns both moments at their start."""
        # Two arrays, not one twice: a buffer can be donated only once.
        start = self.initial_accumulator_value
        return AdamSlots(jnp.full_like(param, start), jnp.full_like(param, start))

    def scalars(self, t: Array) -> YogiScalars:
        """Returns the bias corrections."""
        return YogiScalars(bias_correction(self.b1, t), bias_correction(self.b2, t))

    def update(
        self, grad: Array, slots: AdamSlots, param: Array | None, scalars: YogiScalars
    ) -> tuple[Array, AdamSlots]:
        """Returns the direction `u` and the new moments."""
        mu = moving_average(self.b1, grad, slots.mu)
        square = squared_magnitude(grad)
        nu = slots.nu - complement(self.b2) * jnp.sign(slots.nu - square) * square
        mu_hat, nu_hat = debiased(mu, scalars.mu), debiased(nu, scalars.nu)
        return mu_hat / (jnp.sqrt(nu_hat + self.eps_root) + self.eps), AdamSlots(mu, nu)


@answering
def yogi_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-3,
    eps_root: ArrayLike = 0.0,
    initial_accumulator_value: ArrayLike = 1e-6,
) -> Yogi:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: one minus the rate of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0; a small one makes gradients through `u` finite.
        initial_accumulator_value: where both moments start, >= 0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> yogi_rule(eps=0.1).eps
        0.1
    """
    check_decays(b1=b1, b2=b2, where="yogi")
    check_epsilons(eps=eps, eps_root=eps_root, where="yogi")
    start = initial_accumulator_value
    check_number("initial_accumulator_value", start, minimum=0.0, where="yogi")
    return Yogi(b1, b2, eps, eps_root, initial_accumulator_value)


@named
def scale_by_yogi(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-3,
    eps_root: ArrayLike = 0.0,
    initial_accumulator_value: ArrayLike = 1e-6,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Yogi's direction `u` (not negated).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: one minus the rate of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        initial_accumulator_value: where both moments start, >= 0.
        state_dtype: dtype in which both moments are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdamState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_yogi(b2=0.75, initial_accumulator_value=8.0)
        >>> state = tx.init(jnp.float32(1.0))
        >>> for grad in (2.0, 2.0, 4.0):
        ...     updates, state = tx.update(jnp.float32(grad), state)
        ...     print(state.nu)
        7.0
        6.0
        10.0

    Source:
        Zaheer et al. 2018, Algorithm 2, with bias corrections.
    """
    rule = yogi_rule(b1, b2, eps, eps_root, initial_accumulator_value)
    state_dtype = check_dtype("state_dtype", state_dtype, where="scale_by_yogi")
    return per_leaf(rule, state=ScaleByAdamState, state_dtype=state_dtype)


@named
def yogi(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-3,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Yogi: Adam that forgets large gradients slowly, whatever comes after them.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: one minus the rate of the second moment, in [0, 1).
        eps: added to the denominator, >= 0; larger than Adam's, as the paper recommends.
        state_dtype: as for `scale_by_yogi`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = yogi(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9001

    Source:
        Zaheer et al. 2018, Algorithm 2, with bias corrections.
    """
    check_learning_rate(learning_rate, where="yogi")
    return chain(
        scale_by_yogi(b1, b2, eps, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
