"""Division by the root of a moving average of squared gradients, or by a standard deviation.

Tieleman & Hinton 2012, "Lecture 6.5 - RMSProp", cs.toronto.edu/~tijmen/csc321/slides/
lecture_slides_lec6.pdf.
Graves 2013, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, equations
38 to 41 (centered: the average gradient is taken off the second moment).

For one array, gradient g, t = 1, 2, ...; nu starts at initial_scale:
    nu <- decay nu + (1 - decay) |g|^2
    u  = g / sqrt(nu + eps)        or, eps_in_sqrt=False:        u = g / (sqrt(nu) + eps)
centered:
    mu <- decay mu + (1 - decay) g
    nu - |mu|^2 in the place of nu, and never less than 0
bias_correction:
    nu / (1 - decay^t) and mu / (1 - decay^t) in the place of nu and mu
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_flag, check_number
from flaxtrain.optim import moments
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import Decay, moving_average, squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.transform import GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Updates

__all__ = [
    "CorrectedRms",
    "CorrectedStdDev",
    "Rms",
    "RmsOptions",
    "RmsSlots",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "StdDev",
    "StdDevSlots",
    "rms_rule",
    "scale_by_rms",
    "scale_by_stddev",
]


class RmsSlots(NamedTuple):
    """Second moment of the gradient."""

    nu: Array


class StdDevSlots(NamedTuple):
    """First and second moment of the gradient."""

    mu: Array
    nu: Array


class ScaleByRmsState(NamedTuple):
    """The second moment, a tree like the parameters."""

    nu: Updates


class ScaleByRmsWithCountState(NamedTuple):
    """Number of updates (int32) and the second moment, a tree like the parameters."""

    count: Any  # an Array
    nu: Updates


class ScaleByRStdDevState(NamedTuple):
    """The two moments, trees like the parameters."""

    mu: Updates
    nu: Updates


class ScaleByRStdDevWithCountState(NamedTuple):
    """Number of updates (int32) and the two moments, trees like the parameters."""

    count: Any  # an Array
    mu: Updates
    nu: Updates


@rule
class Rms(Rule):
    """RMSProp for one array.

    Attributes:
        decay: decay of nu.
        eps: keeps the denominator away from 0.
        initial_scale: where nu begins.
        eps_in_sqrt: whether eps is added under the root, or to it.
    """

    decay: Decay = 0.9
    eps: ArrayLike = 1e-8
    initial_scale: ArrayLike = 0.0
    eps_in_sqrt: bool = True

    Slots = RmsSlots

    def init(self, param: Array) -> Any:
        """Returns the second moment before any gradient."""
        return RmsSlots(jnp.full_like(param, self.initial_scale))

    def update(
        self, grad: Array, slots: Any, param: Array | None, scalars: Array | None
    ) -> tuple[Array, Any]:
        """Returns the direction `u` and the new moment; `scalars` is the bias correction."""
        nu = moving_average(self.decay, squared_magnitude(grad), slots.nu)
        return self.divided(grad, _corrected(nu, scalars)), RmsSlots(nu)

    def divided(self, grad: Array, nu: Array) -> Array:
        """Returns `u` for a second moment, or a variance, `nu`."""
        if self.eps_in_sqrt:
            return jax.lax.rsqrt(nu + self.eps) * grad
        return 1 / (jnp.sqrt(nu) + self.eps) * grad


@rule
class CorrectedRms(Rms):
    """RMSProp with bias correction, for one array. Fields are those of `Rms`."""

    def scalars(self, t: Array) -> Array:
        """Returns the bias correction."""
        return moments.bias_correction(self.decay, t)


@rule
class StdDev(Rms):
    """Centered RMSProp for one array. Fields are those of `Rms`."""

    Slots = StdDevSlots

    def init(self, param: Array) -> StdDevSlots:
        """Returns both moments before any gradient."""
        nu = jnp.full_like(param, self.initial_scale)
        return StdDevSlots(mu=jnp.zeros_like(param), nu=nu)

    def update(
        self, grad: Array, slots: StdDevSlots, param: Array | None, scalars: Array | None
    ) -> tuple[Array, StdDevSlots]:
        """Returns the direction `u` and the new moments; `scalars` is the bias correction."""
        mu = moving_average(self.decay, grad, slots.mu)
        nu = moving_average(self.decay, squared_magnitude(grad), slots.nu)
        mu_hat, nu_hat = _corrected(mu, scalars), _corrected(nu, scalars)
        # A variance is not negative, but this difference is, by a rounding, where the gradient
        # hardly changes. The root of it would be NaN.
        variance = jnp.maximum(nu_hat - squared_magnitude(mu_hat), 0)
        return self.divided(grad, variance), StdDevSlots(mu, nu)


@rule
class CorrectedStdDev(StdDev):
    """Centered RMSProp with bias correction, for one array. Fields are those of `Rms`."""

    def scalars(self, t: Array) -> Array:
        """Returns the bias correction."""
        return moments.bias_correction(self.decay, t)


def _corrected(average: Array, correction: Array | None) -> Array:
    return average if correction is None else moments.debiased(average, correction)


class RmsOptions(NamedTuple):
    """The hyperparameters that all rules of this file share; see `scale_by_rms`."""

    decay: Decay = 0.9
    eps: ArrayLike = 1e-8
    initial_scale: ArrayLike = 0.0
    eps_in_sqrt: bool = True
    bias_correction: bool = False


def rms_rule(options: RmsOptions, *, centered: bool, where: str) -> Rms:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        options: the hyperparameters.
        centered: whether to take the average gradient off the second moment.
        where: the function that was called.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> type(rms_rule(RmsOptions(bias_correction=True), centered=False, where="rmsprop"))
        <class 'flaxtrain.optim.rms.CorrectedRms'>
    """
    decay, eps, initial_scale, eps_in_sqrt, bias_correction = options
    moments.check_decays(decay=decay, where=where)
    moments.check_epsilons(eps=eps, where=where)
    check_number("initial_scale", initial_scale, minimum=0.0, where=where)
    check_flag("eps_in_sqrt", eps_in_sqrt, where=where)
    check_flag("bias_correction", bias_correction, where=where)
    plain, corrected = (StdDev, CorrectedStdDev) if centered else (Rms, CorrectedRms)
    kind = corrected if bias_correction else plain
    return kind(decay, eps, initial_scale, bool(eps_in_sqrt))


@named
def scale_by_rms(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to RMSProp's direction `u` (not negated).

    Args:
        decay: decay of the second moment, in [0, 1).
        eps: keeps the denominator away from 0, >= 0.
        initial_scale: where the second moment begins, >= 0.
        eps_in_sqrt: add eps under the root; else to the root, as PyTorch does.
        bias_correction: divide the moment by the total weight of the gradients in it.
        state_dtype: dtype in which the moment is stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByRmsState`; with bias correction, a
        `ScaleByRmsWithCountState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx = scale_by_rms(decay=0.75, eps=0.0)
        >>> updates, state = tx.update(jnp.float32(3.0), tx.init(jnp.float32(0.0)))
        >>> print(updates, state.nu)
        2.0 2.25
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_rms")
    options = RmsOptions(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    rule = rms_rule(options, centered=False, where="scale_by_rms")
    state = ScaleByRmsWithCountState if bias_correction else ScaleByRmsState
    return per_leaf(rule, state=state, state_dtype=state_dtype)


@named
def scale_by_stddev(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation that divides gradients by their estimated standard deviation.

    With bias correction the variance of the first gradient alone is 0, so the first update is
    the gradient times `eps ** -0.5`, or `1 / eps`. Choose `eps` for that.

    Args:
        decay: decay of both moments, in [0, 1).
        eps: keeps the denominator away from 0, >= 0.
        initial_scale: where the second moment begins, >= 0.
        eps_in_sqrt: add eps under the root; else to the root.
        bias_correction: divide both moments by the total weight of the gradients in them.
        state_dtype: as for `scale_by_rms`.

    Returns:
        A transformation whose state is a `ScaleByRStdDevState`; with bias correction, a
        `ScaleByRStdDevWithCountState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx = scale_by_stddev(decay=0.5, eps=0.0)
        >>> updates, state = tx.update(jnp.float32(3.0), tx.init(jnp.float32(0.0)))
        >>> print(updates, state.mu, state.nu)
        2.0 1.5 4.5
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_stddev")
    options = RmsOptions(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    rule = rms_rule(options, centered=True, where="scale_by_stddev")
    state = ScaleByRStdDevWithCountState if bias_correction else ScaleByRStdDevState
    return per_leaf(rule, state=state, state_dtype=state_dtype)
