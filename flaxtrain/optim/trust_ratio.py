"""The trust ratio: updates as long as the parameters they belong to.

You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv:1708.03888,
equation 6. You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76
minutes", arXiv:1904.00962, Algorithm 2.

For one array x and its update u:
    u <- eta |x| / (|u| + eps) u        where |x| = 0 or |u| = 0:    u <- u
Both norms are at least `min_norm`. The ratio has no upper bound (LAMB's function phi is the
identity), and applies to biases too. The update u already holds the weight decay, if there is
any; LARS writes `|g| + beta |x|` for the norm of the decayed gradient `g + beta x`.
"""

from __future__ import annotations

import jax.numpy as jnp

from flaxtrain.checks import check_number
from flaxtrain.optim.norms import safe_norm
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike

__all__ = ["ScaleByTrustRatioState", "TrustRatio", "scale_by_trust_ratio", "trust_ratio_rule"]

ScaleByTrustRatioState = EmptyState
"""The trust ratio remembers nothing."""


@rule
class TrustRatio(Rule):
    """The trust ratio for one array.

    Attributes:
        min_norm: the smallest norm of parameter and update that is taken into account.
        trust_coefficient: eta, a factor of the ratio.
        eps: added to the norm of the update.
    """

    min_norm: ArrayLike = 0.0
    trust_coefficient: ArrayLike = 1.0
    eps: ArrayLike = 0.0

    needs_params = True

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the update, scaled."""
        assert param is not None
        param_norm = safe_norm(param, self.min_norm)
        update_norm = safe_norm(grad, self.min_norm)
        ratio = self.trust_coefficient * param_norm / (update_norm + self.eps)
        # A parameter that is zero would stay zero for ever.
        is_unknown = (param_norm == 0) | (update_norm == 0)
        return grad * jnp.where(is_unknown, 1.0, ratio), slots


def trust_ratio_rule(
    min_norm: ArrayLike = 0.0,
    trust_coefficient: ArrayLike = 1.0,
    eps: ArrayLike = 0.0,
    *,
    where: str = "scale_by_trust_ratio",
) -> TrustRatio:
    """Returns the rule for these hyperparameters, after checking them.

    Args:
        min_norm: smallest norm of parameter and update, >= 0.
        trust_coefficient: factor of the ratio, >= 0.
        eps: added to the norm of the update, >= 0.
        where: the function that was called, for messages.

    Raises:
        ArgumentError: a value is negative, NaN or infinite.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> trust_ratio_rule(eps=1e-8).eps
        1e-08
    """
    check_number("min_norm", min_norm, minimum=0.0, where=where)
    check_number("trust_coefficient", trust_coefficient, minimum=0.0, where=where)
    check_number("eps", eps, minimum=0.0, where=where)
    return TrustRatio(min_norm, trust_coefficient, eps)


@named
def scale_by_trust_ratio(
    min_norm: ArrayLike = 0.0, trust_coefficient: ArrayLike = 1.0, eps: ArrayLike = 0.0
) -> GradientTransformation:
    """Makes the transformation that gives each update the norm of its parameter.

    Where parameter or update are zero, the update is left as it is.

    Args:
        min_norm: smallest norm of parameter and update, >= 0. With one above 0 the ratio is
            always used, so a parameter of zeros takes a step of length `min_norm`.
        trust_coefficient: factor of the ratio, >= 0.
        eps: added to the norm of the update, >= 0.

    Returns:
        A transformation without state. Its `update` needs the parameters.

    Raises:
        ArgumentError: a value is negative, NaN or infinite.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> tx, params = scale_by_trust_ratio(), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([0.0, 0.1]), tx.init(params), params)
        >>> print(updates)
        [0. 5.]
    """
    rule = trust_ratio_rule(min_norm, trust_coefficient, eps)
    return per_leaf(rule, state=ScaleByTrustRatioState)
