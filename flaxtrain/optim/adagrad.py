"""Adagrad: every entry is divided by the root of the sum of its squared gradients.

Duchi, Hazan & Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", jmlr.org/papers/v12/duchi11a.html, Figure 1 (diagonal matrices, primal-dual
steps without a composite term).

For one array and gradient g, from s = initial_accumulator_value:
    s <- s + |g|^2
    u = g / sqrt(s + eps)        and 0 where s is 0
The paper writes delta + sqrt(s) in the denominator; here eps stands under the root.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = [
    "Adagrad",
    "AdagradSlots",
    "ScaleByRssState",
    "adagrad",
    "adagrad_rule",
    "scale_by_rss",
]


class AdagradSlots(NamedTuple):
    """The sum of squared gradients."""

    sum_of_squares: Array


class ScaleByRssState(NamedTuple):
    """The sum of squared gradients, a tree like the parameters."""

    sum_of_squares: Updates


@rule
class Adagrad(Rule):
    """Adagrad for one array.

    Attributes:
        initial_accumulator_value: where the sum of squares begins.
        eps: added under the root.
    """

    initial_accumulator_value: ArrayLike = 0.1
    eps: ArrayLike = 1e-7

    Slots = AdagradSlots

    def init(self, param: Array) -> AdagradSlots:
        """Returns the sum before any gradient."""
        return AdagradSlots(jnp.full_like(param, self.initial_accumulator_value))

    def update(
        self, grad: Array, slots: AdagradSlots, param: Array | None, scalars: None
    ) -> tuple[Array, AdagradSlots]:
        """Returns the direction `u` and the new sum."""
        s = squared_magnitude(grad) + slots.sum_of_squares
        # An entry that never had a gradient rests, also with eps = 0.
        factor = jnp.where(s > 0, jax.lax.rsqrt(s + self.eps), 0.0)
        return factor * grad, AdagradSlots(s)


@answering
def adagrad_rule(initial_accumulator_value: ArrayLike = 0.1, eps: ArrayLike = 1e-7) -> Adagrad:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        initial_accumulator_value: where the sum of squares begins, >= 0.
        eps: added under the root, >= 0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> adagrad_rule(eps=0.0)
        Adagrad(initial_accumulator_value=0.1, eps=0.0)
    """
    initial = initial_accumulator_value
    check_number("initial_accumulator_value", initial, minimum=0.0, where="adagrad")
    check_number("eps", eps, minimum=0.0, where="adagrad")
    return Adagrad(initial, eps)


@named
def scale_by_rss(
    initial_accumulator_value: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to Adagrad's direction `u` (not negated).

    Args:
        initial_accumulator_value: where the sum of squares begins, >= 0.
        eps: added under the root, >= 0.
        state_dtype: dtype in which the sum is stored, with arithmetic and updates in float32
            or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleByRssState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
        >>> state = tx.init(jnp.float32(0.0))
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.float32(3.0), state)
        >>> print(updates, state.sum_of_squares)
        0.5 36.0
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_rss")
    rule = adagrad_rule(initial_accumulator_value, eps)
    return per_leaf(rule, state=ScaleByRssState, state_dtype=state_dtype)


@named
def adagrad(
    learning_rate: ArrayLike | Schedule,
    initial_accumulator_value: ArrayLike = 0.1,
    eps: ArrayLike = 1e-7,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adagrad: steps shrink with the root of the sum of all squared gradients so far.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        initial_accumulator_value: where the sum of squares begins, >= 0.
        eps: added under the root, >= 0.
        state_dtype: as for `scale_by_rss`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = adagrad(0.5, initial_accumulator_value=0.0), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.5
    """
    check_learning_rate(learning_rate, where="adagrad")
    return chain(
        scale_by_rss(initial_accumulator_value, eps, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
