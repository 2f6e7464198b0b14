"""Rprop: every entry has a step size of its own, and only the sign of the gradient counts.

Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the
RPROP algorithm", doi.org/10.1109/ICNN.1993.298623.
Igel & Huesken 2003, "Empirical evaluation of the improved Rprop learning algorithms",
doi.org/10.1016/S0925-2312(01)00700-7. The variant is their iRprop-, one step late: each call
returns the step that the call before it stored, unless the gradient has changed its sign since.

For one entry, gradient g, stored step p (0 at first), step size d (learning_rate at first):
    g p > 0:  d <- min(eta_plus d, max_step_size)     u = p     p <- d sign(g)
    g p < 0:  d <- max(eta_minus d, min_step_size)    u = 0     p <- 0
    g p = 0:                                          u = p     p <- d sign(g)
The paper takes the new p at once. The real and the imaginary part of a complex entry are two
entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import scale
from flaxtrain.optim.stages import DECAY, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Updates

__all__ = [
    "Rprop",
    "RpropSlots",
    "ScaleByRpropState",
    "rprop",
    "rprop_stages",
    "scale_by_rprop",
]


class RpropSlots(NamedTuple):
    """The step sizes, and the steps stored for the next call."""

    step_sizes: Array
    prev_updates: Array


class ScaleByRpropState(NamedTuple):
    """The step sizes, and the steps stored for the next call: trees like the parameters."""

    step_sizes: Updates
    prev_updates: Updates


@rule
class Rprop(Rule):
    """Rprop for one array.

    Attributes:
        learning_rate: the first step size.
        eta_minus: factor of a step size where the gradient changed its sign.
        eta_plus: factor of a step size where it kept it.
        min_step_size: smallest step size.
        max_step_size: largest step size.
    """

    learning_rate: ArrayLike
    eta_minus: ArrayLike = 0.5
    eta_plus: ArrayLike = 1.2
    min_step_size: ArrayLike = 1e-6
    max_step_size: ArrayLike = 50.0

    Slots = RpropSlots

    def init(self, param: Array) -> RpropSlots:
        """Returns equal step sizes, and no step."""
        sizes = jnp.full_like(param.real, self.learning_rate)
        if jnp.iscomplexobj(param):
            sizes = jax.lax.complex(sizes, sizes)
        return RpropSlots(sizes, prev_updates=jnp.zeros_like(param))

    def update(
        self, grad: Array, slots: RpropSlots, param: Array | None, scalars: None
    ) -> tuple[Array, RpropSlots]:
        """Returns the direction `u` and the new slots."""
        if not jnp.iscomplexobj(grad):
            return self.real_update(grad, slots)
        real = self.real_update(*jax.tree.map(jnp.real, (grad, slots)))
        imag = self.real_update(*jax.tree.map(jnp.imag, (grad, slots)))
        return jax.tree.map(jax.lax.complex, real, imag)

    def real_update(self, g: Array, slots: RpropSlots) -> tuple[Array, RpropSlots]:
        """Returns what `update` does, for real entries."""
        d, p = slots
        # Signs are multiplied, not numbers: the product of two small ones would be 0.
        agree = jnp.sign(g) * jnp.sign(p)
        factor = jnp.where(agree > 0, self.eta_plus, self.eta_minus)
        moved = jnp.clip(d * factor, min=self.min_step_size, max=self.max_step_size)
        d = jnp.where(agree == 0, d, moved)
        # The maximum is 0 for opposite signs, and NaN where the gradient is.
        u = jnp.where(agree >= 0, p, jnp.maximum(agree, 0))
        p = jnp.where(agree < 0, jnp.zeros_like(p), d * jnp.sign(g))
        return u, RpropSlots(d, p)


def _rule(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike,
    eta_plus: ArrayLike,
    min_step_size: ArrayLike,
    max_step_size: ArrayLike,
    *,
    where: str,
) -> Rprop:
    low: Any = min_step_size
    high: Any = max_step_size
    shrinking: dict[str, Any] = {"minimum": 0.0, "maximum": 1.0, "exclude": (0.0,)}
    check_number("learning_rate", learning_rate, minimum=0.0, where=where)
    check_number("eta_minus", eta_minus, **shrinking, where=where)
    check_number("eta_plus", eta_plus, minimum=1.0, where=where)
    check_number("min_step_size", low, minimum=0.0, where=where)
    check_number("max_step_size", high, minimum=0.0, exclude=(0.0,), finite=False, where=where)
    if is_concrete(low) and is_concrete(high) and float(low) > float(high):
        raise ArgumentError(
            f"min_step_size={low} is above max_step_size={high}",
            where=where,
            fix="pass a min_step_size that is at most max_step_size",
        )
    return Rprop(learning_rate, eta_minus, eta_plus, low, high)


@answering
def rprop_stages(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `rprop`), after checking them.

    The learning rate is where step sizes begin, no factor, so there is no place for one. Weight
    decay is part of the gradient: what is added to a step would not be scaled.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number (a schedule is not).

    Example:
        >>> rprop_stages(0.1)[1].eta_plus
        1.2
    """
    sizes = (min_step_size, max_step_size)
    return DECAY, _rule(learning_rate, eta_minus, eta_plus, *sizes, where="rprop"), scale(-1.0)


@named
def scale_by_rprop(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Rprop's steps (not negated).

    The step that a gradient causes is returned by the next call, so the first update is 0.

    Args:
        learning_rate: where step sizes begin, a number >= 0.
        eta_minus: factor of a step size where the gradient changed its sign, in (0, 1].
        eta_plus: factor of a step size where it kept it, >= 1.
        min_step_size: smallest step size, >= 0.
        max_step_size: largest step size, > 0 and >= `min_step_size`.
        state_dtype: dtype in which step sizes and steps are stored, with arithmetic and updates
            in float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByRpropState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_rprop(1.0, eta_plus=2.0)
        >>> state, seen = tx.init(jnp.float32(0.0)), []
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.float32(0.3), state)
        ...     seen.append(float(updates))
        >>> seen
        [0.0, 1.0, 2.0, 4.0]
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_rprop")
    sizes = (min_step_size, max_step_size)
    rule = _rule(learning_rate, eta_minus, eta_plus, *sizes, where="scale_by_rprop")
    return per_leaf(rule, state=ScaleByRpropState, state_dtype=state_dtype)


@named
def rprop(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Rprop: step sizes that grow while the sign of the gradient stays, and shrink when not.

    For gradients of the full data set: the noise of small batches has both signs.

    Args:
        learning_rate: where step sizes begin, a number >= 0; they are not scaled by it later,
            so it can't be a schedule.
        eta_minus: factor of a step size where the gradient changed its sign, in (0, 1].
        eta_plus: factor of a step size where it kept it, >= 1.
        min_step_size: smallest step size, >= 0.
        max_step_size: largest step size, > 0 and >= `min_step_size`.
        state_dtype: as for `scale_by_rprop`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx, x = rprop(0.25), jnp.float32(1.0)
        >>> state = tx.init(x)
        >>> for _ in range(2):
        ...     updates, state = tx.update(2 * x, state)
        ...     x = x + updates
        >>> print(x)
        0.75
    """
    factors, sizes = (eta_minus, eta_plus), (min_step_size, max_step_size)
    return chain(
        scale_by_rprop(learning_rate, *factors, *sizes, state_dtype=state_dtype), scale(-1.0)
    )
