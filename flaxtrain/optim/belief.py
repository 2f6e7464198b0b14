"""AdaBelief: Adam with the variance of the gradient around its own average.

Zhuang et al. 2020, "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
Gradients", arXiv:2010.07468, Algorithm 2.

For one array, gradient g, t = 1, 2, ...:
    mu <- b1 mu + (1 - b1) g        nu <- b2 nu + (1 - b2) |g - mu|^2 + eps_root
    mu_hat = mu / (1 - b1^t)        nu_hat = nu / (1 - b2^t)
    u = mu_hat / (sqrt(nu_hat) + eps)
The paper's s is nu. The error is taken from the new mu, and `eps_root` is added to what is
stored, at every step, as in the algorithm (there it is the same epsilon as in the denominator).
The look ahead of `nesterov` is that of `adam`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_flag
from flaxtrain.errors import ArgumentError
from flaxtrain.optim.adam import Adam, AdamScalars, AdamSlots, Nadam
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    check_decays,
    check_epsilons,
    debiased,
    moving_average,
    squared_magnitude,
)
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "AdaBelief",
    "NesterovAdaBelief",
    "ScaleByBeliefState",
    "adabelief",
    "adabelief_rule",
    "scale_by_belief",
]


class ScaleByBeliefState(NamedTuple):
    """Number of updates (int32), the average and the variance, trees like the parameters."""

    count: Any  # an Array
    mu: Updates
    nu: Updates


@rule
class AdaBelief(Adam):
    """AdaBelief for one array. Fields are those of `Adam`, with other defaults.

    Attributes:
        eps: added to the denominator.
        eps_root: added to nu at every step.
    """

    eps: ArrayLike = 1e-16
    eps_root: ArrayLike = 1e-16

    def update(
        self, grad: Array, slots: AdamSlots, param: Array | None, scalars: AdamScalars
    ) -> tuple[Array, AdamSlots]:
        """Returns the direction `u`, and the new average and variance."""
        mu = moving_average(self.b1, grad, slots.mu)
        error = squared_magnitude(grad - mu)
        nu = moving_average(self.b2, error, slots.nu) + self.eps_root
        mu_hat = self.first_moment(grad, mu, scalars)
        u = mu_hat / (jnp.sqrt(debiased(nu, scalars.nu)) + self.eps)
        return u, AdamSlots(mu, nu)


@rule
class NesterovAdaBelief(AdaBelief, Nadam):
    """AdaBelief with Nesterov's look ahead, for one array. Fields are those of `AdaBelief`."""


@answering
def adabelief_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
) -> AdaBelief:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the average, in [0, 1).
        b2: decay of the variance, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added to the variance at every step, >= 0.
        nesterov: look one step ahead (`NesterovAdaBelief`).

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a bool.

    Example:
        >>> adabelief_rule(b2=0.99).b2
        0.99
    """
    check_decays(b1=b1, b2=b2, where="adabelief")
    check_epsilons(eps=eps, eps_root=eps_root, where="adabelief")
    check_flag("nesterov", nesterov, where="adabelief")
    return (NesterovAdaBelief if nesterov else AdaBelief)(b1, b2, eps, eps_root)


@named
def scale_by_belief(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to AdaBelief's direction `u` (not negated).

    Args:
        b1: decay of the average, in [0, 1).
        b2: decay of the variance, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added to the variance at every step, >= 0; a positive one makes gradients
            through `u` finite.
        nesterov: look one step ahead.
        state_dtype: dtype in which both slots are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByBeliefState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_belief()
        >>> updates, state = tx.update(jnp.float32(0.5), tx.init(jnp.float32(1.0)))
        >>> print(round(float(updates), 4), state.count)  # 1 / b1: the error is b1 g
        1.1111 1

    Source:
        Zhuang et al. 2020, Algorithm 2.
    """
    rule = adabelief_rule(b1, b2, eps, eps_root, nesterov=nesterov)
    state_dtype = check_dtype("state_dtype", state_dtype, where="scale_by_belief")
    return per_leaf(rule, state=ScaleByBeliefState, state_dtype=state_dtype)


@named
def adabelief(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    weight_decay: ArrayLike | Schedule | None = None,
    weight_decay_mask: Mask | None = None,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """AdaBelief: large steps where gradients are as expected, small ones where they are not.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the average, in [0, 1).
        b2: decay of the variance, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added to the variance at every step, >= 0.
        nesterov: look one step ahead.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate.
            None: no decay, and no place for it in the state.
        weight_decay_mask: a tree of bools like the parameters or a prefix of it, or a function
            from the parameters to one: which of them decay. None: all.
        state_dtype: as for `scale_by_belief`.

    Raises:
        ArgumentError: a value is out of range, or there is a mask without a decay.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adabelief(0.09), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9

    Source:
        Zhuang et al. 2020, Algorithm 2; decoupled decay as in `adamw`.
    """
    check_learning_rate(learning_rate, where="adabelief")
    if weight_decay is None and weight_decay_mask is not None:
        raise ArgumentError(
            "weight_decay_mask without weight_decay has no effect",
            where="adabelief",
            fix="pass weight_decay as well, or no mask",
        )
    decay = () if weight_decay is None else (weight_decay, weight_decay_mask)
    parts = chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov, state_dtype=state_dtype),
        *([add_decayed_weights(*decay)] if decay else []),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
