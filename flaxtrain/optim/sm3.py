"""SM3: Adagrad with one sum for each row and column in the place of one for each entry.

Anil, Gupta, Koren & Singer 2019, "Memory-Efficient Adaptive Optimization", arXiv:1901.11150,
Algorithm SM3-II, covers being the slices along each axis, with the momentum of section 4.

For one array, gradient g, entry j, and the slices r that contain it, from mu = 0:
    a(j)   = min over r of mu(r), + |g(j)|^2
    mu(r) <- max over j in r of a(j)
    nu    <- b1 nu + (1 - b1) g / sqrt(a + eps)        the quotient is 0 where a = 0
    u      = nu
With b2 < 1 the sum is a moving average: a = b2 min mu + (1 - b2) |g|^2. A scalar has one slice.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.combine import chain
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.moments import (
    Decay,
    check_decays,
    complement,
    moving_average,
    squared_magnitude,
    value,
)
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, DTypeLike, Schedule, Updates

__all__ = ["SM3", "SM3Slots", "ScaleBySM3State", "scale_by_sm3", "sm3", "sm3_rule"]


class SM3Slots(NamedTuple):
    """One vector for each axis (of a scalar: one scalar), and the moving average of updates."""

    mu: list[Array]
    nu: Array


class ScaleBySM3State(NamedTuple):
    """Lists of a vector for each axis, and moving averages of updates: trees of both."""

    mu: Updates
    nu: Updates


@rule
class SM3(Rule):
    """SM3 for one array.

    Attributes:
        b1: decay of nu, the momentum.
        b2: decay of the sums; with 1 they are sums, else moving averages.
        eps: added under the root.
    """

    b1: Decay = 0.9
    b2: Decay = 1.0
    eps: ArrayLike = 1e-8

    Slots = SM3Slots

    def init(self, param: Array) -> SM3Slots:
        """Returns zeros."""
        lengths = [(length,) for length in param.shape] or [()]
        mu = [jnp.zeros(shape, param.real.dtype) for shape in lengths]
        return SM3Slots(mu, nu=jnp.zeros_like(param))

    def update(
        self, grad: Array, slots: SM3Slots, param: Array | None, scalars: None
    ) -> tuple[Array, SM3Slots]:
        """Returns the direction `u` and the new slots."""
        covers = [_along(axis, mu, grad.ndim) for axis, mu in enumerate(slots.mu)]
        least = reduce(jnp.minimum, covers)
        a = self.gain() * squared_magnitude(grad) + value(self.b2) * least
        # What never had a gradient rests, also with eps = 0.
        up = grad * jnp.where(a > 0, jax.lax.rsqrt(a + self.eps), 0.0)
        nu = moving_average(self.b1, up, slots.nu)
        return nu, SM3Slots([_largest(a, axis) for axis in range(len(slots.mu))], nu)

    def gain(self) -> ArrayLike:
        """Returns the factor of the new square: 1 for sums, `1 - b2` for averages."""
        b2 = value(self.b2)
        if isinstance(b2, (int, float)):
            return 1.0 if b2 == 1 else 1 - b2
        return jnp.where(b2 == 1, 1, complement(self.b2))


def _along(axis: int, vector: Array, ndim: int) -> Array:
    """Returns the vector with `ndim` axes, its own being the one given."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)]) if ndim else vector


def _largest(array: Array, axis: int) -> Array:
    others = tuple(i for i in range(array.ndim) if i != axis)
    # Squares are not negative; 0 also is the largest of no entries at all.
    return jnp.max(array, axis=others, initial=0.0) if others else array


@answering
def sm3_rule(momentum: Decay = 0.9) -> SM3:
    """Returns the rule for this hyperparameter, after checking it.

    Args:
        momentum: decay of the moving average of updates, in [0, 1).

    Raises:
        ArgumentError: `momentum` is out of range.
        ArgumentTypeError: `momentum` is not a number.

    Example:
        >>> sm3_rule(momentum=0.0)
        SM3(b1=0.0, b2=1.0, eps=1e-08)
    """
    check_decays(momentum=momentum, where="sm3")
    return SM3(momentum)


@named
def scale_by_sm3(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 1.0,
    eps: ArrayLike = 1e-8,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Makes the transformation from gradients to SM3's direction `u` (not negated).

    Args:
        b1: decay of the moving average of updates, in [0, 1).
        b2: 1: squares are summed; in [0, 1): they are averaged with that decay.
        eps: added under the root, >= 0.
        state_dtype: dtype in which all slots are stored, with arithmetic and updates in float32
            or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is a `ScaleBySM3State`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number, or not a dtype.

    Example:
        >>> tx = scale_by_sm3(b1=0.0, eps=0.0)
        >>> g = jnp.array([[3.0, 4.0]])
        >>> updates, state = tx.update(g, tx.init(g))
        >>> print(updates, state.mu[0], state.mu[1])
        [[1. 1.]] [16.] [ 9. 16.]
    """
    check_decays(b1=b1, where="scale_by_sm3")
    check_number("b2", b2, minimum=0.0, maximum=1.0, where="scale_by_sm3")
    check_number("eps", eps, minimum=0.0, where="scale_by_sm3")
    check_dtype("state_dtype", state_dtype, where="scale_by_sm3")
    return per_leaf(SM3(b1, b2, eps), state=ScaleBySM3State, state_dtype=state_dtype)


@named
def sm3(
    learning_rate: ArrayLike | Schedule,
    momentum: ArrayLike = 0.9,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """SM3: an adaptive method whose sums of squares take one number for each row and column.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        momentum: decay of the moving average of updates, in [0, 1).
        state_dtype: as for `scale_by_sm3`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = sm3(0.5, momentum=0.0), jnp.array([1.0, -2.0])
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(x + updates)
        [ 0.5 -1.5]
    """
    check_learning_rate(learning_rate, where="sm3")
    sm3_rule(momentum)
    return chain(
        scale_by_sm3(momentum, state_dtype=state_dtype), scale_by_learning_rate(learning_rate)
    )
