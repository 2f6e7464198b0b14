"""NovoGrad: momentum of gradients that are divided by the norm of their array.

Ginsburg et al. 2019, "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training
of Deep Networks", arXiv:1905.11286, Algorithm 1.
Li et al. 2019, "Jasper: An End-to-End Convolutional Neural Acoustic Model", arXiv:1904.03288.

For one array x, gradient g, t = 1, 2, ..., where nu is one number for the whole array:
    nu <- b2 nu + (1 - b2) |g|^2    from nu = 0, with 1 in place of 1 - b2 at t = 1
    d  = g / (sqrt(nu + eps_root) + eps)
    mu <- b1 mu + (d + weight_decay x)    from mu = 0
    u  = mu
The gradients are summed in mu, not averaged: a constant direction gives steps of
1 / (1 - b1) in the long run. The decay is part of what is summed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype, stored_dtype
from flaxtrain.optim.moments import Decay, check_decays, check_epsilons, complement, value
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.sgd import Trace
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "NormDirection",
    "NormDirectionSlots",
    "NovoGrad",
    "NovoGradScalars",
    "NovoGradSlots",
    "NovoGradW",
    "ScaleByNovogradState",
    "novograd",
    "novograd_stages",
    "scale_by_novograd",
]


class NormDirectionSlots(NamedTuple):
    """The average squared norm of the gradient, a scalar."""

    nu: Array


class NovoGradSlots(NamedTuple):
    """The sum of directions, and the average squared norm of the gradient, a scalar."""

    mu: Array
    nu: Array


class NovoGradScalars(NamedTuple):
    """What depends on the step: the weight of this norm, and the decay, if scheduled."""

    now: Array
    weight_decay: ArrayLike | None


class ScaleByNovogradState(NamedTuple):
    """Number of updates (int32), and two trees like the parameters: `nu` has scalars."""

    count: Any  # an Array
    mu: Updates
    nu: Updates


@rule
class NormDirection(Rule):
    """The first half of NovoGrad, for one array: the direction d.

    Attributes:
        b2: decay of nu.
        eps: added to the denominator.
        eps_root: added under the root.
    """

    b2: Decay = 0.25
    eps: ArrayLike = 1e-8
    eps_root: ArrayLike = 0.0

    Slots = NormDirectionSlots

    def init(self, param: Array) -> NormDirectionSlots:
        """Returns a zero."""
        return NormDirectionSlots(jnp.zeros([], param.dtype))

    def scalars(self, t: Array) -> Array:
        """Returns the weight of this step's norm in the average."""
        return jnp.where(t == 1, 1.0, complement(self.b2))

    def update(
        self, grad: Array, slots: NormDirectionSlots, param: Array | None, scalars: Array
    ) -> tuple[Array, NormDirectionSlots]:
        """Returns the direction and the new average."""
        squared = jnp.square(jnp.linalg.norm(grad))
        nu = scalars.astype(squared.dtype) * squared + value(self.b2) * slots.nu
        nu = nu.astype(slots.nu.dtype)
        return grad / (jnp.sqrt(nu + self.eps_root) + self.eps), NormDirectionSlots(nu)


@rule
class NovoGrad(Rule):
    """NovoGrad without weight decay, for one array.

    Attributes:
        b1: what remains of mu after one step.
        b2: decay of nu.
        eps: added to the denominator.
        eps_root: added under the root.
        mu_dtype: dtype in which mu is stored; None: that of the parameter.
    """

    b1: Decay = 0.9
    b2: Decay = 0.25
    eps: ArrayLike = 1e-8
    eps_root: ArrayLike = 0.0
    mu_dtype: DTypeLike | None = None

    Slots = NovoGradSlots

    def init(self, param: Array) -> NovoGradSlots:
        """Returns a zero sum and a zero average."""
        mu = jnp.zeros_like(param, dtype=stored_dtype(param, self.mu_dtype))
        return NovoGradSlots(mu, *self._direction.init(param))

    def scalars(self, t: Array) -> NovoGradScalars:
        """Returns the weight of this step's norm, and no decay."""
        return NovoGradScalars(self._direction.scalars(t), weight_decay=None)

    def update(
        self, grad: Array, slots: NovoGradSlots, param: Array | None, scalars: NovoGradScalars
    ) -> tuple[Array, NovoGradSlots]:
        """Returns mu, rounded to the dtype in which it is stored, and the new slots."""
        before = NormDirectionSlots(slots.nu)
        direction, (nu,) = self._direction.update(grad, before, None, scalars.now)
        mu = value(self.b1) * slots.mu + self.decayed(direction, param, scalars)
        mu = mu.astype(stored_dtype(mu, self.mu_dtype))
        return mu, NovoGradSlots(mu, nu)

    def decayed(self, direction: Array, param: Any, scalars: NovoGradScalars) -> Array:
        """Returns what is summed."""
        return direction

    @property
    def _direction(self) -> NormDirection:
        return NormDirection(self.b2, self.eps, self.eps_root)


@rule
class NovoGradW(NovoGrad):
    """NovoGrad with weight decay, for one array. Fields are those of `NovoGrad`, and one more.

    Attributes:
        weight_decay: a number, or a schedule of the number of updates already applied.
    """

    weight_decay: ArrayLike | Schedule = 0.0

    needs_params = True

    def scalars(self, t: Array) -> NovoGradScalars:
        """Returns the weight of this step's norm, and the decay, if scheduled."""
        decay = self.weight_decay(t - 1) if callable(self.weight_decay) else None
        return NovoGradScalars(self._direction.scalars(t), decay)

    def decayed(self, direction: Array, param: Any, scalars: NovoGradScalars) -> Array:
        """Returns the direction plus a share of the parameter."""
        if callable(self.weight_decay):  # a schedule's value never widens what it multiplies
            return direction + jnp.asarray(scalars.weight_decay, direction.dtype) * param
        return direction + self.weight_decay * param


def _check(b1: Any, b2: Any, eps: Any, eps_root: Any, weight_decay: Any = 0.0) -> None:
    check_decays(b1=b1, b2=b2, where="novograd")
    check_epsilons(eps=eps, eps_root=eps_root, where="novograd")
    if not callable(weight_decay):
        check_number("weight_decay", weight_decay, minimum=0.0, where="novograd")


@answering
def novograd_stages(
    b1: Decay = 0.9, b2: Decay = 0.25, eps: ArrayLike = 1e-6, eps_root: ArrayLike = 0.0
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters, after checking them.

    The decay stands between the direction and the sum, so that it may be masked or scheduled;
    the numbers are those of `novograd`.

    Args:
        b1: what remains of the sum of directions after one step, in [0, 1).
        b2: decay of the average squared norm, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> direction, decay, momentum, rate = novograd_stages(b1=0.95)
        >>> direction, momentum.decay
        (NormDirection(b2=0.25, eps=1e-06, eps_root=0.0), 0.95)
    """
    _check(b1, b2, eps, eps_root)
    return NormDirection(b2, eps, eps_root), DECAY, Trace(value(b1)), RATE


@named
def scale_by_novograd(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.25,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike | Schedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to NovoGrad's sum of directions (not negated).

    Args:
        b1: what remains of the sum of directions after one step, in [0, 1).
        b2: decay of the average squared norm, in [0, 1).
        eps: added to the denominator, >= 0; `novograd` has 1e-6 here.
        eps_root: added under the root, >= 0; a small one makes gradients through the update
            finite.
        weight_decay: share of the parameter that is summed with the direction: a number >= 0,
            or a schedule of the number of updates already applied.
        mu_dtype: dtype of the stored sum, which is also the update; None: that of the
            parameter.
        state_dtype: dtype in which both slots are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByNovogradState`. Its `update` needs the
        parameters unless `weight_decay` is the Python number 0.0.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_novograd()
        >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))
        >>> print(updates, state.nu)
        [0.6 0.8] 25.0

    Source:
        Ginsburg et al. 2019, Algorithm 1.
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_novograd", instead_of=mu_dtype)
    mu_dtype = check_dtype("mu_dtype", mu_dtype, where="scale_by_novograd")
    _check(b1, b2, eps, eps_root, weight_decay)
    is_off = isinstance(weight_decay, (int, float)) and weight_decay == 0.0
    cls, decay = (NovoGrad, ()) if is_off else (NovoGradW, (weight_decay,))
    rule = cls(b1, b2, eps, eps_root, mu_dtype, *decay)
    return per_leaf(rule, state=ScaleByNovogradState, state_dtype=state_dtype)


@named
def novograd(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.25,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike | Schedule = 0.0,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """NovoGrad: momentum whose steps depend on the norm of each array's gradient, not its size.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: what remains of the sum of directions after one step, in [0, 1).
        b2: decay of the average squared norm, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        weight_decay: share of the parameter that is summed with the direction: a number >= 0,
            or a schedule of the number of updates already applied.
        state_dtype: as for `scale_by_novograd`.

    Returns:
        A transformation whose `update` needs the parameters unless `weight_decay` is the
        Python number 0.0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = novograd(0.1), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9

    Source:
        Ginsburg et al. 2019, Algorithm 1.
    """
    check_learning_rate(learning_rate, where="novograd")
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
