"""LARS: momentum over layer-wise scaled gradients.

You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv:1708.03888,
Algorithm 1.

For one array x and gradient g, with the learning rate inside the momentum:
    u = g + weight_decay x
    v <- momentum v + learning_rate eta |x| / (|u| + eps) u        x <- x - v
The paper's ratio has `|g| + weight_decay |x|` below; this one has the norm of the sum. It is 1
where x or u is zero.
"""

from __future__ import annotations

from flaxtrain.checks import check_flag, check_number
from flaxtrain.optim.combine import Mask, chain, masked
from flaxtrain.optim.dtypes import check_dtype
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.sgd import Trace, trace
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.trust_ratio import (
    ScaleByTrustRatioState,
    TrustRatio,
    trust_ratio_rule,
)
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import ArrayLike, DTypeLike, Schedule

__all__ = ["lars", "lars_stages"]


@answering
def lars_stages(
    trust_coefficient: ArrayLike = 0.001,
    eps: ArrayLike = 0.0,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
) -> tuple[Stage, ...]:
    """Returns the stages of LARS: decay, trust ratio, learning rate, momentum.

    Args:
        trust_coefficient: factor of the ratio, >= 0.
        eps: added to the norm of the update, >= 0.
        momentum: what remains of the trace after one step, in [-1, 1].
        nesterov: apply the momentum once more to the new trace.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> [type(stage).__name__ for stage in lars_stages()]
        ['Place', 'TrustRatio', 'Place', 'Trace']
    """
    ratio, memory = _rules(trust_coefficient, eps, momentum, nesterov)
    return (DECAY, ratio, RATE, memory)


def _rules(
    trust_coefficient: ArrayLike, eps: ArrayLike, momentum: ArrayLike, nesterov: bool
) -> tuple[TrustRatio, Trace]:
    check_number("momentum", momentum, minimum=-1.0, maximum=1.0, where="lars")
    check_flag("nesterov", nesterov, where="lars")
    ratio = trust_ratio_rule(0.0, trust_coefficient, eps, where="lars")
    return ratio, Trace(momentum, nesterov)


@named
def lars(
    learning_rate: ArrayLike | Schedule,
    weight_decay: ArrayLike | Schedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: ArrayLike = 0.001,
    eps: ArrayLike = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Momentum over gradients that are scaled to the norm of each array.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        weight_decay: a number >= 0, or a schedule. It is added to the gradient.
        weight_decay_mask: which parameters decay: a bool for all, a tree of bools like the
            parameters or a prefix of it, or a function from the parameters to one.
        trust_coefficient: factor of the ratio, >= 0.
        eps: added to the norm of the gradient, >= 0.
        trust_ratio_mask: which parameters are scaled; those that are not get plain momentum.
            Biases and norm scales are the usual exceptions.
        momentum: what remains of the trace after one step, in [-1, 1].
        nesterov: apply the momentum once more to the new trace.
        state_dtype: dtype in which the trace is stored, with arithmetic and updates in float32
            or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is that of a chain of four. Its `update` needs the
        parameters.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = lars(1.0, trust_coefficient=0.1), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([10.0, 0.0]), tx.init(x), x)
        >>> print(x + updates)
        [2.5 4. ]
    """
    check_learning_rate(learning_rate, where="lars")
    check_dtype("state_dtype", state_dtype, where="lars")
    ratio, *_ = _rules(trust_coefficient, eps, momentum, nesterov)
    parts = chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(per_leaf(ratio, state=ScaleByTrustRatioState), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov, state_dtype=state_dtype),
    )
    return in_float32(parts, state_dtype)
