"""Optimistic Adam: optimism about Adam's direction.

Daskalakis, Ilyas, Syrgkanis & Zeng 2017, "Training GANs with Optimism", arXiv:1711.00141,
Algorithm 1.

For one array, with Adam's direction a, that of the call before a' (at the first call a):
    x <- x - learning_rate (alpha a + beta (a - a'))
The paper has alpha = beta = 1. Unlike there, Adam is Nadam by default.
"""

from __future__ import annotations

from typing import Any

from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.adam import adam_rule, scale_by_adam
from flaxtrain.optim.combine import chain
from flaxtrain.optim.moments import Decay
from flaxtrain.optim.optimistic import (
    optimistic_gradient_descent_rule,
    scale_by_optimistic_gradient,
)
from flaxtrain.optim.scale import check_learning_rate, scale, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import ArrayLike, DTypeLike, Schedule

__all__ = [
    "optimistic_adam",
    "optimistic_adam_stages",
    "optimistic_adam_v2",
    "optimistic_adam_v2_stages",
]


def _check_optimistic_adam(learning_rate: Any, optimism: Any) -> None:
    where = "optimistic_adam"
    if callable(learning_rate):
        raise ArgumentTypeError(
            f"learning_rate={learning_rate!r} is a schedule, which is not possible here",
            where=where,
            fix="use optimistic_adam_v2",
        )
    check_learning_rate(learning_rate, where=where)
    if optimism is not None:
        check_number("optimism", optimism, where=where)


@answering
def optimistic_adam_stages(
    learning_rate: ArrayLike,
    optimism: ArrayLike | None = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `optimistic_adam`).

    The learning rate is a hyperparameter of the second stage, so there is no place for one, and
    none for a weight decay, which it would have to scale.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type; a schedule has.

    Example:
        >>> optimistic_adam_stages(0.1, 0.2)[1]
        OptimisticGradient(alpha=0.1, beta=0.2)
    """
    _check_optimistic_adam(learning_rate, optimism)
    adam = adam_rule(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    beta = learning_rate if optimism is None else optimism
    return adam, optimistic_gradient_descent_rule(learning_rate, beta), scale(-1.0)


@named
def optimistic_adam(
    learning_rate: ArrayLike,
    optimism: ArrayLike | None = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Optimistic Adam with a constant learning rate; `optimistic_adam_v2` also takes schedules.

    Args:
        learning_rate: factor of Adam's direction, a number >= 0.
        optimism: factor of its change, any number; None: the learning rate.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        nesterov: look one step ahead.
        state_dtype: as for `scale_by_adam`; of the last direction as well.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type; a schedule has.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = optimistic_adam(0.1, nesterov=False), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9
    """
    _check_optimistic_adam(learning_rate, optimism)
    moments: dict[str, Any] = {"nesterov": nesterov, "state_dtype": state_dtype}
    beta = learning_rate if optimism is None else optimism
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, **moments),
        scale_by_optimistic_gradient(learning_rate, beta, state_dtype=state_dtype),
        scale_by_learning_rate(1.0),
    )


@answering
def optimistic_adam_v2_stages(
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `optimistic_adam_v2`).

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> optimistic_adam_v2_stages(beta=0.5)[1]
        OptimisticGradient(alpha=1.0, beta=0.5)
    """
    adam = adam_rule(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return adam, optimistic_gradient_descent_rule(alpha, beta), DECAY, RATE


@named
def optimistic_adam_v2(
    learning_rate: ArrayLike | Schedule,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Optimistic Adam: optimism about Adam's direction.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        alpha: factor of Adam's direction, >= 0.
        beta: factor of its change, any number.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        nesterov: look one step ahead.
        state_dtype: as for `scale_by_adam`; of the last direction as well.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = optimistic_adam_v2(0.1, nesterov=False), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.9
    """
    check_learning_rate(learning_rate, where="optimistic_adam_v2")
    moments: dict[str, Any] = {"nesterov": nesterov, "state_dtype": state_dtype}
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, **moments),
        scale_by_optimistic_gradient(alpha, beta, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
