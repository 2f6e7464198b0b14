"""Polyak's step size: as long as the loss is high above its minimum for the gradient at hand.

Polyak 1969, "Minimization of unsmooth functionals".
Loizou et al. 2020, "Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast
Convergence", arXiv:2002.10542, equation SPS_max with c = 1.
Garrigos et al. 2023, "Function Value Learning: Adaptive Learning Rates Based on the Polyak
Stepsize and Function Splitting in ERM", arXiv:2307.14528 (SPS+: the gap is not negative).

For all gradients g together, f the value of the loss at the same place:
    step = min((f - f_min) / (|g|^2 + eps), max_learning_rate)        u = step g
sps+:  max(f - f_min, 0) in the place of f - f_min
The step is 0 where |g|^2 + eps is not above 2.2e-16.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_choice, check_number
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.sgd import sgd
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named
from flaxtrain.tree import sum_of_squares
from flaxtrain.typing import ArrayLike, OptState, Params, Schedule, Updates

__all__ = ["polyak_sgd", "scale_by_polyak"]

_VARIANTS = ("sps", "sps+")


@named
def scale_by_polyak(
    f_min: ArrayLike = 0.0,
    max_learning_rate: ArrayLike = 1.0,
    eps: ArrayLike = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """Makes the transformation that multiplies updates by Polyak's step size (not negated).

    Its `update` needs the loss: `update(updates, state, params, value=loss)`.

    Args:
        f_min: the smallest value of the loss, or a bound below it, any finite number.
        max_learning_rate: the largest step size, >= 0; infinity: no limit.
        eps: added to the squared norm, >= 0.
        variant: "sps", or "sps+", where a loss below `f_min` gives the step size 0 in the place
            of a negative one.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type; from `update`: there is no `value`, or it
            is not a scalar.
        UnknownNameError: there is no such variant.

    Example:
        >>> tx, x = scale_by_polyak(), jnp.float32(3.0)
        >>> updates, state = tx.update(2 * x, tx.init(x), value=x**2)
        >>> print(updates)
        1.5
    """
    check_number("f_min", f_min, where="scale_by_polyak")
    if not (isinstance(max_learning_rate, float) and max_learning_rate == math.inf):
        rate = max_learning_rate
        check_number("max_learning_rate", rate, minimum=0.0, where="scale_by_polyak")
    check_number("eps", eps, minimum=0.0, where="scale_by_polyak")
    check_choice("variant", variant, _VARIANTS, where="scale_by_polyak")

    def init(params: Params, /) -> EmptyState:
        return EmptyState()

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        _check_value(extra_args.get("value"))
        updates = jax.tree.map(jnp.asarray, updates)
        norm = sum_of_squares(updates)
        gap = jnp.asarray(extra_args["value"] - f_min).astype(norm.dtype)
        gap = jnp.maximum(gap, 0) if variant == "sps+" else gap
        # No step along what is rounding only; also keeps 0 / 0 out.
        is_zero = norm + eps <= jnp.finfo(float).eps
        step = jnp.minimum(gap / (norm + eps), max_learning_rate)
        step = jnp.where(is_zero, jnp.array(0.0), step)
        return jax.tree.map(lambda leaf: step * leaf, updates), state

    return GradientTransformation(init, update)


def _check_value(value: Any) -> None:
    where = "scale_by_polyak: update(updates, state, params, value=...)"
    if value is None:
        raise ArgumentTypeError(
            "Polyak's step size needs the loss, and got no value=",
            where=where,
            fix="call update(updates, state, params, value=loss); optax.chain and the other "
            "wrappers of optax strip such extra arguments, ft.optim.chain passes them",
        )
    if jnp.shape(value) != ():
        raise ArgumentTypeError(
            f"value has the shape {jnp.shape(value)}, and the loss is a scalar",
            where=where,
            fix="pass the mean over the batch",
        )


@named
def polyak_sgd(
    max_learning_rate: ArrayLike = 1.0,
    scaling: ArrayLike | Schedule = 1.0,
    f_min: ArrayLike = 0.0,
    eps: ArrayLike = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """Gradient descent with Polyak's step size, which is computed from the loss.

    Its `update` needs the loss: `update(updates, state, params, value=loss)`.

    Args:
        max_learning_rate: the largest step size, >= 0; infinity: no limit.
        scaling: a number >= 0, or a schedule of the number of updates already applied. It
            multiplies the gradient in front of everything else, so it also enters the norm: the
            step is `(f - f_min) / (scaling |g|^2)` along the gradient, and at most `scaling *
            max_learning_rate`.
        f_min: the smallest value of the loss, or a bound below it, any finite number.
        eps: added to the squared norm, >= 0.
        variant: "sps" or "sps+"; see `scale_by_polyak`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type; from `update`: there is no `value`, or it
            is not a scalar.
        UnknownNameError: there is no such variant.

    Example:
        >>> tx, x = polyak_sgd(), jnp.float32(3.0)
        >>> state = tx.init(x)
        >>> for _ in range(2):
        ...     updates, state = tx.update(2 * x, state, value=x**2)
        ...     x = x + updates
        >>> print(x)
        0.75
    """
    if not callable(scaling):
        check_number("scaling", scaling, minimum=0.0, where="polyak_sgd")
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
