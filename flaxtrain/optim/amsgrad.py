"""AMSGrad: Adam with a second moment that never falls.

Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond",
openreview.net/forum?id=ryQu7f-RZ, Algorithm 2.

For one array, gradient g, t = 1, 2, ...:
    mu <- b1 mu + (1 - b1) g        nu <- b2 nu + (1 - b2) |g|^2
    mu_hat = mu / (1 - b1^t)        nu_hat = nu / (1 - b2^t)
    nu_max <- max(nu_max, nu_hat)
    u = mu_hat / (sqrt(nu_max + eps_root) + eps)
The paper has no bias corrections: pass `bias_correction_mu=False, bias_correction_nu=False` for
it. With them, the default, the maximum is taken over the corrected moment; PyTorch takes it
over the plain one and corrects afterwards.
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
    debiased,
    moving_average,
    squared_magnitude,
)
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "AMSGrad",
    "AMSGradScalars",
    "AMSGradSlots",
    "ScaleByAmsgradState",
    "amsgrad",
    "amsgrad_rule",
    "scale_by_amsgrad",
]


class AMSGradSlots(NamedTuple):
    """First and second moment of the gradient, and the largest second moment so far."""

    mu: Array
    nu: Array
    nu_max: Array


class AMSGradScalars(NamedTuple):
    """What depends on the step: bias corrections; None where there is none."""

    mu: Array | None
    nu: Array | None


class ScaleByAmsgradState(NamedTuple):
    """Number of updates (int32) and the slots, trees like the parameters."""

    count: Any  # an Array
    mu: Updates
    nu: Updates
    nu_max: Updates


@rule
class AMSGrad(Rule):
    """AMSGrad for one array.

    Attributes:
        b1: decay of mu.
        b2: decay of nu.
        eps: added to the denominator.
        eps_root: added under the root.
        mu_dtype: dtype in which mu is stored; None: that of the parameter.
        bias_correction_mu: divide mu by its total weight.
        bias_correction_nu: divide nu by its total weight, before the maximum.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: ArrayLike = 1e-8
    eps_root: ArrayLike = 0.0
    mu_dtype: DTypeLike | None = None
    bias_correction_mu: bool = True
    bias_correction_nu: bool = True

    Slots = AMSGradSlots

    def init(self, param: Array) -> AMSGradSlots:
        """Returns zero moments and a zero maximum."""
        mu = jnp.zeros_like(param, dtype=stored_dtype(param, self.mu_dtype))
        return AMSGradSlots(mu, nu=jnp.zeros_like(param), nu_max=jnp.zeros_like(param))

    def scalars(self, t: Array) -> AMSGradScalars:
        """Returns the bias corrections."""
        return AMSGradScalars(
            mu=bias_correction(self.b1, t) if self.bias_correction_mu else None,
            nu=bias_correction(self.b2, t) if self.bias_correction_nu else None,
        )

    def update(
        self, grad: Array, slots: AMSGradSlots, param: Array | None, scalars: AMSGradScalars
    ) -> tuple[Array, AMSGradSlots]:
        """Returns the direction `u`, the new moments and the new maximum."""
        mu = moving_average(self.b1, grad, slots.mu)
        nu = moving_average(self.b2, squared_magnitude(grad), slots.nu)
        mu_hat = mu if scalars.mu is None else debiased(mu, scalars.mu)
        nu_hat = nu if scalars.nu is None else debiased(nu, scalars.nu)
        nu_max = jnp.maximum(slots.nu_max, nu_hat)
        u = mu_hat / (jnp.sqrt(nu_max + self.eps_root) + self.eps)
        return u, AMSGradSlots(mu.astype(stored_dtype(mu, self.mu_dtype)), nu, nu_max)


@answering
def amsgrad_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> AMSGrad:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0; a small one makes gradients through `u` finite.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        bias_correction_mu: divide the first moment by its total weight.
        bias_correction_nu: divide the second moment by its total weight, before the maximum.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, not a dtype, or not a bool.

    Example:
        >>> amsgrad_rule(bias_correction_nu=False).bias_correction_nu
        False
    """
    check_decays(b1=b1, b2=b2, where="amsgrad")
    check_epsilons(eps=eps, eps_root=eps_root, where="amsgrad")
    mu_dtype = check_dtype("mu_dtype", mu_dtype, where="amsgrad")
    flags = {"bias_correction_mu": bias_correction_mu, "bias_correction_nu": bias_correction_nu}
    for name, flag in flags.items():
        check_flag(name, flag, where="amsgrad")
    return AMSGrad(b1, b2, eps, eps_root, mu_dtype, *map(bool, flags.values()))


@named
def scale_by_amsgrad(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to AMSGrad's direction `u` (not negated).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        bias_correction_mu: divide the first moment by its total weight; False as in the paper.
        bias_correction_nu: the same for the second moment, before the maximum.
        state_dtype: dtype in which all slots are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAmsgradState`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value is not a number, not a dtype, or not a bool.

    Example:
        >>> tx = scale_by_amsgrad()
        >>> state = tx.init(jnp.float32(1.0))
        >>> for grad in (2.0, 0.0, 0.0):
        ...     updates, state = tx.update(jnp.float32(grad), state)
        >>> print(round(float(state.nu_max), 3), round(float(state.nu), 3))
        4.0 0.004

    Source:
        Reddi, Kale & Kumar 2018, Algorithm 2.
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_amsgrad", instead_of=mu_dtype)
    corrections = (bias_correction_mu, bias_correction_nu)
    rule = amsgrad_rule(b1, b2, eps, eps_root, mu_dtype, *corrections)
    return per_leaf(rule, state=ScaleByAmsgradState, state_dtype=state_dtype)


@named
def amsgrad(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """AMSGrad: Adam whose steps never grow again after a large gradient.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        bias_correction_mu: divide the first moment by its total weight; False as in the paper.
        bias_correction_nu: the same for the second moment, before the maximum.
        state_dtype: as for `scale_by_amsgrad`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = amsgrad(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9

    Source:
        Reddi, Kale & Kumar 2018, Algorithm 2.
    """
    check_learning_rate(learning_rate, where="amsgrad")
    moments = (b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu)
    return chain(
        scale_by_amsgrad(*moments, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
