"""RAdam: Adam that waits until its second moment can be trusted.

Liu et al. 2019, "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265,
Algorithm 2.

For one array, with mu_hat and nu_hat of `adam`, t = 1, 2, ...:
    ro_inf = 2 / (1 - b2) - 1       ro = ro_inf - 2 t b2^t / (1 - b2^t)
    r = sqrt((ro - 4) (ro - 2) ro_inf / ((ro_inf - 4) (ro_inf - 2) ro))
    u = r mu_hat / (sqrt(nu_hat + eps_root) + eps)   where ro >= threshold, else   u = mu_hat
ro counts how many gradients nu averages. The paper starts at ro > 4; the default threshold of 5
is that of its authors' code. The look ahead of `nesterov` is that of `adam`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_number
from flaxtrain.optim.adam import Adam, AdamScalars, AdamSlots, Nadam, ScaleByAdamState
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    check_decays,
    check_epsilons,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
    value,
)
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule

__all__ = ["NesterovRAdam", "RAdam", "RAdamScalars", "radam", "radam_rule", "scale_by_radam"]


class RAdamScalars(NamedTuple):
    """What depends on the step: bias corrections, whether nu is used, and the factor r."""

    corrections: AdamScalars
    rectifies: Array
    r: Array


@rule
class RAdam(Adam):
    """RAdam for one array. Fields are those of `Adam`, and one more.

    Attributes:
        threshold: the ro from which on nu is used.
    """

    threshold: ArrayLike = 5.0

    def scalars(self, t: Array) -> Any:
        """Returns `RAdamScalars`."""
        ro_inf = 2.0 / complement(self.b2) - 1.0
        power = value(self.b2) ** t
        ro = ro_inf - 2 * t * power / (1 - power)
        rectifies = ro >= self.threshold
        ratio = (ro - 4.0) * (ro - 2.0) * ro_inf / ((ro_inf - 4.0) * (ro_inf - 2.0) * ro)
        # The ratio may be negative before it is used: without the 1, the gradient through an
        # update of the first steps would be 0 times NaN.
        r = jnp.sqrt(jnp.where(rectifies, ratio, 1.0))
        return RAdamScalars(super().scalars(t), rectifies, r)

    def update(
        self, grad: Array, slots: AdamSlots, param: Array | None, scalars: Any
    ) -> tuple[Array, AdamSlots]:
        """Returns the direction `u` and the new moments."""
        mu = moving_average(self.b1, grad, slots.mu)
        nu = moving_average(self.b2, squared_magnitude(grad), slots.nu)
        mu_hat = self.first_moment(grad, mu, scalars.corrections)
        nu_hat = debiased(nu, scalars.corrections.nu)
        r = scalars.r.astype(mu_hat.dtype)
        rectified = r * mu_hat / (jnp.sqrt(nu_hat + self.eps_root) + self.eps)
        return jnp.where(scalars.rectifies, rectified, mu_hat), AdamSlots(mu, nu)


@rule
class NesterovRAdam(RAdam, Nadam):
    """RAdam with Nesterov's look ahead, for one array. Fields are those of `RAdam`."""


@answering
def radam_rule(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
    *,
    nesterov: bool = False,
) -> RAdam:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1); below 0.6 it is never used.
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0; a small one makes gradients through `u` finite.
        threshold: the number of averaged gradients ro from which on the second moment is used,
            >= 4; below that r is not a real number.
        nesterov: look one step ahead (`NesterovRAdam`).

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a bool.

    Example:
        >>> radam_rule(threshold=4.5).threshold
        4.5
    """
    check_decays(b1=b1, b2=b2, where="radam")
    check_epsilons(eps=eps, eps_root=eps_root, where="radam")
    check_number("threshold", threshold, minimum=4.0, where="radam")
    check_flag("nesterov", nesterov, where="radam")
    cls = NesterovRAdam if nesterov else RAdam
    return cls(b1, b2, eps, eps_root, threshold=threshold)


@named
def scale_by_radam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to RAdam's direction `u` (not negated).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        threshold: the number of averaged gradients ro from which on the second moment is used,
            >= 4.
        nesterov: look one step ahead.
        state_dtype: dtype in which both moments are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdamState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx, seen = scale_by_radam(b2=0.9), []
        >>> state = tx.init(jnp.float32(1.0))
        >>> for _ in range(6):
        ...     updates, state = tx.update(jnp.float32(2.0), state)
        ...     seen.append(round(float(updates), 3))
        >>> print(seen)
        [2.0, 2.0, 2.0, 2.0, 2.0, 0.255]

    Source:
        Liu et al. 2019, Algorithm 2.
    """
    rule = radam_rule(b1, b2, eps, eps_root, threshold, nesterov=nesterov)
    state_dtype = check_dtype("state_dtype", state_dtype, where="scale_by_radam")
    return per_leaf(rule, state=ScaleByAdamState, state_dtype=state_dtype)


@named
def radam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Rectified Adam: momentum at first, then Adam with steps that grow as nu is trusted more.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
            The first steps, five by default, are this times the gradient, however large.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        threshold: the number of averaged gradients ro from which on the second moment is used,
            >= 4.
        nesterov: look one step ahead.
        state_dtype: as for `scale_by_radam`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = radam(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.8

    Source:
        Liu et al. 2019, Algorithm 2.
    """
    check_learning_rate(learning_rate, where="radam")
    moments: dict[str, Any] = {"nesterov": nesterov, "state_dtype": state_dtype}
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, **moments),
        scale_by_learning_rate(learning_rate),
    )
