"""Sign descent: every entry moves by the learning rate, whatever the size of its gradient.

Bernstein et al. 2018, "signSGD: Compressed Optimisation for Non-Convex Problems",
arXiv:1802.04434, Algorithm 1 (signSGD, on one machine) and Algorithm 2 (Signum).

For one array and gradient g:
    u = sign(g)
Signum:
    ema <- beta ema + (1 - beta) g        u = sign(ema)
The sign of 0 is 0, that of a complex number z is z / |z|.
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.ema import Ema, ema
from flaxtrain.optim.moments import Decay, check_decays
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import EmptyState, GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule

__all__ = ["Sign", "scale_by_sign", "sign_sgd", "sign_sgd_rule", "signum", "signum_stages"]


@rule
class Sign(Rule):
    """The sign of the gradient: nothing is remembered."""

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the sign."""
        return jnp.sign(grad), slots


@answering
def sign_sgd_rule() -> Sign:
    """Returns the rule of `sign_sgd`, which has no hyperparameters.

    Example:
        >>> sign_sgd_rule()
        Sign()
    """
    return Sign()


@named
def scale_by_sign() -> GradientTransformation:
    """Makes the transformation from updates to their signs.

    Returns:
        A transformation without state.

    Example:
        >>> tx = scale_by_sign()
        >>> updates, state = tx.update(jnp.array([0.2, -3.0, 0.0]), tx.init(None))
        >>> print(updates)
        [ 1. -1.  0.]
    """
    return per_leaf(Sign(), state=EmptyState)


@named
def sign_sgd(learning_rate: ArrayLike | Schedule) -> GradientTransformation:
    """Sign descent: steps of the learning rate against the sign of the gradient.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
            All steps have that size, so only a falling schedule converges.

    Raises:
        ArgumentError: `learning_rate` is negative, NaN or infinite.
        ArgumentTypeError: `learning_rate` is neither a number nor callable.

    Example:
        >>> tx, x = sign_sgd(0.25), jnp.array([1.0, -8.0])
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(x + updates)
        [ 0.75 -7.75]
    """
    check_learning_rate(learning_rate, where="sign_sgd")
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@answering
def signum_stages(
    beta: Decay = 0.9, accumulator_dtype: DTypeLike | None = None
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `signum`), after checking them.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> signum_stages(beta=0.99)[0]
        Ema(decay=0.99, accumulator_dtype=None)
    """
    check_decays(beta=beta, where="signum")
    dtype = check_dtype("accumulator_dtype", accumulator_dtype, where="signum")
    return Ema(beta, dtype), Sign(), DECAY, RATE


@named
def signum(
    learning_rate: ArrayLike | Schedule,
    beta: ArrayLike = 0.9,
    accumulator_dtype: DTypeLike | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Signum: sign descent along a moving average of the gradients.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        beta: decay of the moving average, in [0, 1).
        accumulator_dtype: dtype in which the average is stored; None: that of the parameter.
        state_dtype: the same, with arithmetic and updates in float32 or wider.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = signum(0.25, beta=0.5), jnp.float32(0.0)
        >>> state = tx.init(x)
        >>> for g in (4.0, -1.0, -1.0, -1.0):
        ...     updates, state = tx.update(jnp.float32(g), state)
        ...     x = x + updates
        >>> print(x)
        0.0
    """
    check_learning_rate(learning_rate, where="signum")
    check_decays(beta=beta, where="signum")
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype, state_dtype=state_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )
