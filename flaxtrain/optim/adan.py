"""Adan: Nesterov's momentum without evaluating the gradient at another point.

Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
arXiv:2208.06677, Algorithm 1.

For one array, gradient g_t, t = 1, 2, ..., and d = g_t - g_(t-1), which is 0 at t = 1:
    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) d
    n <- b3 n + (1 - b3) |g + w d|^2
    m_hat, v_hat, n_hat: divided by 1 - b1^t, 1 - b2^t, 1 - b3^t
    u = (m_hat + w v_hat) / (sqrt(n_hat + eps_root) + eps)
The decays b are one minus the paper's betas. So the paper's w, one minus beta, is b2, as in the
authors' code; Optax has 1 - b2 there, which is the default here. Pass `difference_weight=0.92`
for the paper. Weight decay is decoupled as in `adamw`; the paper divides the parameter by
1 + learning_rate weight_decay instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import Mask, chain
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
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "Adan",
    "AdanScalars",
    "AdanSlots",
    "ScaleByAdanState",
    "adan",
    "adan_rule",
    "scale_by_adan",
]


class AdanSlots(NamedTuple):
    """Averages of gradient, difference and square, and the last gradient."""

    m: Array
    v: Array
    n: Array
    g: Array


class AdanScalars(NamedTuple):
    """What depends on the step: whether it is the first, and the bias corrections."""

    is_first: Array
    m: Array
    v: Array
    n: Array


class ScaleByAdanState(NamedTuple):
    """The slots, trees like the parameters, and the number of updates (int32) in `t`."""

    m: Updates
    v: Updates
    n: Updates
    g: Updates
    t: Array


@rule
class Adan(Rule):
    """Adan for one array.

    Attributes:
        b1: decay of m.
        b2: decay of v.
        b3: decay of n.
        eps: added to the denominator.
        eps_root: added under the root.
        difference_weight: the weight w of the difference; None: 1 - b2.
    """

    b1: Decay = 0.98
    b2: Decay = 0.92
    b3: Decay = 0.99
    eps: ArrayLike = 1e-8
    eps_root: ArrayLike = 0.0
    difference_weight: ArrayLike | None = None

    Slots = AdanSlots

    def init(self, param: Array) -> AdanSlots:
        """Returns zeros."""
        return AdanSlots(*(jnp.zeros_like(param) for _ in AdanSlots._fields))

    def scalars(self, t: Array) -> AdanScalars:
        """Returns whether there is no last gradient yet, and the bias corrections."""
        corrections = (bias_correction(b, t) for b in (self.b1, self.b2, self.b3))
        return AdanScalars(t == 1, *corrections)

    def update(
        self, grad: Array, slots: AdanSlots, param: Array | None, scalars: AdanScalars
    ) -> tuple[Array, AdanSlots]:
        """Returns the direction `u` and the new slots."""
        difference = jnp.where(scalars.is_first, jnp.zeros_like(grad), grad - slots.g)
        weight = self.difference_weight
        weight = complement(self.b2) if weight is None else weight
        m = moving_average(self.b1, grad, slots.m)
        v = moving_average(self.b2, difference, slots.v)
        n = moving_average(self.b3, squared_magnitude(grad + weight * difference), slots.n)
        ahead = debiased(m, scalars.m) + weight * debiased(v, scalars.v)
        u = ahead / (jnp.sqrt(debiased(n, scalars.n) + self.eps_root) + self.eps)
        return u, AdanSlots(m, v, n, grad)


@answering
def adan_rule(
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 1e-8,
    *,
    difference_weight: ArrayLike | None = None,
) -> Adan:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        b1: decay of the average gradient, in [0, 1).
        b2: decay of the average difference, in [0, 1).
        b3: decay of the average square, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        difference_weight: the weight of the difference, >= 0; None: 1 - b2.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> adan_rule(b3=0.9).b3
        0.9
    """
    check_decays(b1=b1, b2=b2, b3=b3, where="adan")
    check_epsilons(eps=eps, eps_root=eps_root, where="adan")
    if difference_weight is not None:
        check_number("difference_weight", difference_weight, minimum=0.0, where="adan")
    return Adan(b1, b2, b3, eps, eps_root, difference_weight)


@named
def scale_by_adan(
    b1: ArrayLike = 0.98,
    b2: ArrayLike = 0.92,
    b3: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    *,
    difference_weight: ArrayLike | None = None,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Adan's direction `u` (not negated).

    Args:
        b1: decay of the average gradient, in [0, 1).
        b2: decay of the average difference, in [0, 1).
        b3: decay of the average square, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0; `adan` has 1e-8 here.
        difference_weight: the weight of the difference, >= 0; None: 1 - b2. The paper's is b2.
        state_dtype: dtype in which all slots, also the last gradient, are stored, with
            arithmetic and updates in float32 or wider; None: everything in the dtype of
            parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByAdanState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_adan()
        >>> updates, state = tx.update(jnp.float32(0.5), tx.init(jnp.float32(1.0)))
        >>> print(round(float(updates), 4), state.t, state.g)
        1.0 1 0.5

    Source:
        Xie et al. 2022, Algorithm 1.
    """
    rule = adan_rule(b1, b2, b3, eps, eps_root, difference_weight=difference_weight)
    state_dtype = check_dtype("state_dtype", state_dtype, where="scale_by_adan")
    return per_leaf(rule, state=ScaleByAdanState, state_dtype=state_dtype, counter="t")


@named
def adan(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.98,
    b2: ArrayLike = 0.92,
    b3: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: Mask | None = None,
    *,
    difference_weight: ArrayLike | None = None,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adan: Adam that follows the gradient's change as well as the gradient.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the average gradient, in [0, 1).
        b2: decay of the average difference, in [0, 1).
        b3: decay of the average square, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        difference_weight: the weight of the difference, >= 0; None: 1 - b2. The paper's is b2.
        state_dtype: as for `scale_by_adan`.

    Returns:
        A transformation whose `update` needs the parameters, also where nothing decays.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adan(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x), x)
        >>> print(round(float(x + updates), 4))
        0.9

    Source:
        Xie et al. 2022, Algorithm 1; Loshchilov & Hutter 2017, arXiv:1711.05101 (the decay).
    """
    check_learning_rate(learning_rate, where="adan")
    moments: dict[str, Any] = {
        "difference_weight": difference_weight,
        "state_dtype": state_dtype,
    }
    parts = chain(
        scale_by_adan(b1, b2, b3, eps, eps_root, **moments),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
