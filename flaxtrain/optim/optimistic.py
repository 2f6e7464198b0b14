"""Optimistic gradients: a step along the gradient expected next.

Mokhtari, Ozdaglar & Pattathil 2019, "A Unified Analysis of Extra-gradient and Optimistic
Gradient Methods for Saddle Point Problems: Proximal Point Approach", arXiv:1901.08511,
equation 14 (generalized OGDA).

For one array, gradient g, that of the call before g':
    u = alpha g + beta (g - g')
At the first call g' is g.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.per_leaf import init_slots, update_slots
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import (
    Array,
    ArrayLike,
    DTypeLike,
    OptState,
    Params,
    Schedule,
    Updates,
)

__all__ = [
    "OptimisticGradient",
    "OptimisticGradientSlots",
    "ScaleByOptimisticGradientState",
    "optimistic_gradient_descent",
    "optimistic_gradient_descent_rule",
    "scale_by_optimistic_gradient",
]


class OptimisticGradientSlots(NamedTuple):
    """The gradient of the call before."""

    previous_gradient: Array


class ScaleByOptimisticGradientState(NamedTuple):
    """Whether there was no gradient yet (bool), and the last gradient, a tree."""

    is_initial_step: Array
    previous_gradient: Updates


@rule
class OptimisticGradient(Rule):
    """Optimism for one array.

    Attributes:
        alpha: factor of the gradient.
        beta: factor of its change.
    """

    alpha: ArrayLike = 1.0
    beta: ArrayLike = 1.0

    Slots = OptimisticGradientSlots

    def init(self, param: Array) -> OptimisticGradientSlots:
        """Returns a zero, which stands for no gradient."""
        return OptimisticGradientSlots(jnp.zeros_like(param))

    def scalars(self, t: Array) -> Array:
        """Returns whether this is the first step."""
        return t == 1

    def update(
        self, grad: Array, slots: OptimisticGradientSlots, param: Array | None, scalars: Array
    ) -> tuple[Array, OptimisticGradientSlots]:
        """Returns the direction `u`, and stores the gradient."""
        before = jnp.where(scalars, grad, slots.previous_gradient)
        u: Any = (self.alpha + self.beta) * grad - self.beta * before
        return u, OptimisticGradientSlots(grad)


@answering
def optimistic_gradient_descent_rule(
    alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0
) -> OptimisticGradient:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        alpha: factor of the gradient, >= 0.
        beta: factor of its change, any number: 0 is gradient descent, > 0 optimism.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number (a schedule is not).

    Example:
        >>> optimistic_gradient_descent_rule(beta=0.5)
        OptimisticGradient(alpha=1.0, beta=0.5)
    """
    check_number("alpha", alpha, minimum=0.0, where="scale_by_optimistic_gradient")
    check_number("beta", beta, where="scale_by_optimistic_gradient")
    return OptimisticGradient(alpha, beta)


@named
def scale_by_optimistic_gradient(
    alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0, *, state_dtype: DTypeLike | None = None
) -> GradientTransformation:
    """Makes the transformation from gradients to optimistic ones (not negated).

    Args:
        alpha: factor of the gradient, >= 0.
        beta: factor of its change, any number.
        state_dtype: dtype in which the last gradient is stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of the gradients.

    Returns:
        A transformation whose state is a `ScaleByOptimisticGradientState`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_optimistic_gradient()
        >>> state, seen = tx.init(jnp.float32(0.0)), []
        >>> for g in (1.0, 1.5, 1.5):
        ...     updates, state = tx.update(jnp.float32(g), state)
        ...     seen.append(float(updates))
        >>> seen
        [1.0, 2.0, 1.5]
    """
    check_dtype("state_dtype", state_dtype, where="scale_by_optimistic_gradient")
    rule = optimistic_gradient_descent_rule(alpha, beta)

    def init(params: Params, /) -> ScaleByOptimisticGradientState:
        slots = init_slots(rule, params, state_dtype=state_dtype)
        return ScaleByOptimisticGradientState(jnp.array(True), slots.previous_gradient)

    # The state has a flag where the lift keeps a count: 1 and 2 stand for all counts.
    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, ScaleByOptimisticGradientState]:
        t = jnp.where(state.is_initial_step, jnp.int32(1), jnp.int32(2))
        slots = OptimisticGradientSlots(state.previous_gradient)
        new, slots = update_slots(rule, t, updates, slots, params, state_dtype=state_dtype)
        return new, ScaleByOptimisticGradientState(jnp.array(False), slots.previous_gradient)

    return GradientTransformation(init, update)


@named
def optimistic_gradient_descent(
    learning_rate: ArrayLike | Schedule,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Optimistic gradient descent: converges in games where gradient descent circles.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        alpha: factor of the gradient, >= 0.
        beta: factor of its change, any number: 0 is gradient descent, > 0 optimism.
        state_dtype: as for `scale_by_optimistic_gradient`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, game = optimistic_gradient_descent(0.25), jnp.array([1.0, 1.0])
        >>> state = tx.init(game)  # x y, of which one player wants the least, one the most
        >>> for _ in range(200):
        ...     updates, state = tx.update(jnp.array([game[1], -game[0]]), state)
        ...     game = game + updates
        >>> print(bool(jnp.all(jnp.abs(game) < 0.01)))
        True
    """
    check_learning_rate(learning_rate, where="optimistic_gradient_descent")
    return chain(
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
