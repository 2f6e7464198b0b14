"""Fromage: steps of a fixed relative length, on a sphere that does not grow.

Bernstein et al. 2020, "On the distance between two neural networks and the stability of
learning", arXiv:2002.03432, Algorithm 1.

For one array x, gradient g and learning rate eta, with s = sqrt(1 + eta^2):
    x <- (x - eta |x| / |g| g) / s
Both norms are at least `min_norm`. Were g at a right angle to x, the step would make x longer
by the factor s; the division undoes that. With a zero gradient, x shrinks by s.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.optim.combine import chain
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.stages import RATE, Stage
from flaxtrain.optim.transform import EmptyState, GradientTransformation, answering, named
from flaxtrain.optim.trust_ratio import ScaleByTrustRatioState, trust_ratio_rule
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import Array, ArrayLike, Schedule

__all__ = ["Contraction", "Shrinkage", "fromage", "fromage_stages"]


@rule
class Shrinkage(Rule):
    """Adds a constant share of the parameter, `u + share x`, for one array.

    Attributes:
        share: 1/s - 1, a number below 0.
    """

    share: ArrayLike

    needs_params = True

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the update with the share added."""
        assert param is not None
        return grad + self.share * param, slots


@rule
class Contraction(Rule):
    """Fromage's division by s, for one array and its step u: `(x + u) / s - x`.

    Attributes:
        learning_rate: eta, a number or a schedule.
    """

    learning_rate: ArrayLike | Schedule

    needs_params = True

    def scalars(self, t: Array) -> Array:
        """Returns eta^2."""
        eta: Any = self.learning_rate
        return jnp.asarray(eta(t - 1) if callable(eta) else eta) ** 2

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: Array
    ) -> tuple[Array, NoSlots]:
        """Returns the update that leads to the divided parameter."""
        assert param is not None
        # s - 1 without the difference of two numbers near 1.
        s = jnp.sqrt(1 + scalars)
        excess = scalars / (1 + s)
        dtype = grad.real.dtype
        return (grad - excess.astype(dtype) * param) / s.astype(dtype), slots


@answering
def fromage_stages(
    learning_rate: ArrayLike | Schedule, min_norm: ArrayLike = 1e-6
) -> tuple[Stage, ...]:
    """Returns the stages of Fromage: trust ratio, learning rate, contraction.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied;
            the contraction depends on it, too.
        min_norm: smallest norm of parameter and gradient, >= 0.

    Raises:
        ArgumentError: a value is negative, NaN or infinite.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> [type(stage).__name__ for stage in fromage_stages(0.1)]
        ['TrustRatio', 'Place', 'Contraction']
    """
    check_learning_rate(learning_rate, where="fromage")
    return (trust_ratio_rule(min_norm, where="fromage"), RATE, Contraction(learning_rate))


@named
def fromage(
    learning_rate: ArrayLike | Schedule, min_norm: ArrayLike = 1e-6
) -> GradientTransformation:
    """Steps of the relative length `learning_rate`, and a contraction that bounds the norm.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        min_norm: smallest norm of parameter and gradient, >= 0: what lets a parameter of zeros
            start, and one of a single entry change its sign.

    Returns:
        A transformation whose state is that of a chain of three; with a schedule, the second
        and the third have a count. Its `update` needs the parameters.

    Raises:
        ArgumentError: a value is negative, NaN or infinite.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = fromage(0.75), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([4.0, -3.0]), tx.init(x), x)
        >>> print(x + updates, jnp.linalg.norm(x + updates))
        [0. 5.] 5.0
    """
    check_learning_rate(learning_rate, where="fromage")
    ratio = trust_ratio_rule(min_norm, where="fromage")
    eta: Any = learning_rate
    if callable(eta):
        rate = scale_by_learning_rate(lambda count: _factor(eta(count)) * eta(count))
        # A decay that is negative: it is added, while the rate before it has turned the sign.
        contraction = add_decayed_weights(lambda count: _share(jnp.asarray(eta(count))))
    else:
        rate = scale_by_learning_rate(eta * _factor(eta))
        contraction = per_leaf(Shrinkage(_factor(eta) - 1), state=EmptyState)
    return chain(per_leaf(ratio, state=ScaleByTrustRatioState), rate, contraction)


def _factor(eta: Any) -> Any:
    """Returns 1/s."""
    return 1 / (1 + eta**2) ** 0.5


# Compiled also in eager mode: a small difference of two numbers near 1, of which one unit in
# the last place is 1e-3 at eta = 0.01.
@partial(jax.jit, inline=True)
def _share(eta: Array) -> Array:
    return _factor(eta) - 1
