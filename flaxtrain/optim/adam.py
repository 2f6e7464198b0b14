"""Adam and its near relatives.

Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1.
Dozat 2016, "Incorporating Nesterov Momentum into Adam", openreview.net/forum?id=
OM0jvwB8jIp57ZJjtNEZ, Algorithm 2.

For one array, gradient g, t = 1, 2, ...:
    mu <- b1 mu + (1 - b1) g        nu <- b2 nu + (1 - b2) |g|^2
    mu_hat = mu / (1 - b1^t)        nu_hat = nu / (1 - b2^t)
    u = mu_hat / (sqrt(nu_hat + eps_root) + eps)
Nesterov (Nadam) looks one step ahead, without the constant factor b2 that Dozat gives nu_hat:
    mu_hat = b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_flag
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.moments import (
    Decay,
    bias_correction,
    check_decays,
    check_epsilons,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
    value,
)
from flaxtrain.optim.per_leaf import per_leaf, safe_increment
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "Adam",
    "AdamScalars",
    "AdamSlots",
    "Nadam",
    "ScaleByAdamState",
    "adam",
    "adam_rule",
    "nadam",
    "nadam_rule",
    "scale_by_adam",
]


class AdamSlots(NamedTuple):
    """First and second moment of the gradient."""

    mu: Array
    nu: Array


class AdamScalars(NamedTuple):
    """What depends on the step: bias corrections of the gradient's share, mu and nu."""

    now: Array
    mu: Array
    nu: Array


class ScaleByAdamState(NamedTuple):
    """Number of updates (int32) and the two moments, trees like the parameters."""

    count: Any  # an Array; `count` is also a method of tuple, which Any does not contradict
    mu: Updates
    nu: Updates


@rule
class Adam(Rule):
    """Adam for one array.

    Attributes:
        b1: decay of mu.
        b2: decay of nu.
        eps: added to the denominator.
        eps_root: added under the root.
        mu_dtype: dtype in which mu is stored; None: that of the parameter.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: ArrayLike = 1e-8
    eps_root: ArrayLike = 0.0
    mu_dtype: DTypeLike | None = None

    Slots = AdamSlots

    def init(self, param: Array) -> AdamSlots:
        """Returns zero moments."""
        mu = jnp.zeros_like(param, dtype=stored_dtype(param, self.mu_dtype))
        return AdamSlots(mu, nu=jnp.zeros_like(param))

    def scalars(self, t: Array) -> AdamScalars:
        """Returns the bias corrections."""
        now = bias_correction(self.b1, t)
        return AdamScalars(now, mu=now, nu=bias_correction(self.b2, t))

    def update(
        self, grad: Array, slots: AdamSlots, param: Array | None, scalars: AdamScalars
    ) -> tuple[Array, AdamSlots]:
        """Returns the direction `u` and the new moments."""
        mu = moving_average(self.b1, grad, slots.mu)
        nu = moving_average(self.b2, squared_magnitude(grad), slots.nu)
        mu_hat = self.first_moment(grad, mu, scalars)
        nu_hat = debiased(nu, scalars.nu)
        u = mu_hat / (jnp.sqrt(nu_hat + self.eps_root) + self.eps)
        # u is formed from the moments at full precision; only what is stored gets rounded.
        mu = mu.astype(stored_dtype(mu, self.mu_dtype))
        return u, AdamSlots(mu, nu.astype(slots.nu.dtype))

    def first_moment(self, grad: Array, mu: Array, scalars: AdamScalars) -> Array:
        """Returns `mu_hat`."""
        return debiased(mu, scalars.mu)


@rule
class Nadam(Adam):
    """Adam with Nesterov's look ahead, for one array. Fields are those of `Adam`."""

    def scalars(self, t: Array) -> AdamScalars:
        """Returns the bias corrections; that of mu is one step ahead."""
        ahead = bias_correction(self.b1, safe_increment(t))
        return AdamScalars(bias_correction(self.b1, t), ahead, bias_correction(self.b2, t))

    def first_moment(self, grad: Array, mu: Array, scalars: AdamScalars) -> Array:
        """Returns `mu_hat` of the step after this one, as far as it is known now."""
        past, now = debiased(mu, scalars.mu), debiased(grad, scalars.now)
        return value(self.b1) * past + complement(self.b1) * now


@answering
def adam_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> Adam:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0; a small one makes gradients through `u` finite.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        nesterov: look one step ahead (`Nadam`).

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> adam_rule(b2=0.99, nesterov=True).b2
        0.99
    """
    check_decays(b1=b1, b2=b2, where="adam")
    check_epsilons(eps=eps, eps_root=eps_root, where="adam")
    mu_dtype = check_dtype("mu_dtype", mu_dtype, where="adam")
    check_flag("nesterov", nesterov, where="adam")
    return (Nadam if nesterov else Adam)(b1, b2, eps, eps_root, mu_dtype)


@answering
def nadam_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> Adam:
    """Returns `adam_rule` with the look ahead by default. Arguments and errors are its own.

    Example:
        >>> nadam_rule(b2=0.99)
        Nadam(b1=0.9, b2=0.99, eps=1e-08, eps_root=0.0, mu_dtype=None)
    """
    return adam_rule(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@named
def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Adam's direction `u` (not negated).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        nesterov: look one step ahead.
        state_dtype: dtype in which both moments are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdamState`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_adam()
        >>> updates, state = tx.update(jnp.float32(0.5), tx.init(jnp.float32(1.0)))
        >>> print(round(float(updates), 4), state.count)
        1.0 1
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_adam", instead_of=mu_dtype)
    rule = adam_rule(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return per_leaf(rule, state=ScaleByAdamState, state_dtype=state_dtype)


@named
def adam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adam: moving averages of the gradient and its square, corrected for their start at zero.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        nesterov: look one step ahead (Nadam).
        state_dtype: as for `scale_by_adam`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adam(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9
    """
    check_learning_rate(learning_rate, where="adam")
    moments: dict[str, Any] = {"nesterov": nesterov, "state_dtype": state_dtype}
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, **moments),
        scale_by_learning_rate(learning_rate),
    )


@named
def nadam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adam with Nesterov's look ahead: `adam` with `nesterov=True`. Arguments are `adam`'s.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = nadam(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.8526
    """
    return adam(
        learning_rate,
        *(b1, b2, eps, eps_root, mu_dtype),
        nesterov=nesterov,
        state_dtype=state_dtype,
    )
