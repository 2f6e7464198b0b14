"""LAMB: Adam with a trust ratio for each array.

You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
arXiv:1904.00962, Algorithm 2.

With `r = mu_hat / (sqrt(nu_hat) + eps)` of Adam, for one array x:
    u = r + weight_decay x        x <- x - learning_rate |x| / |u| u
The function phi of the paper is the identity: the ratio has no bounds, and is 1 where x or u is
zero. It applies to every array, biases and norm scales too.
"""

from __future__ import annotations

from flaxtrain.optim.adam import adam_rule, scale_by_adam
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.moments import Decay
from flaxtrain.optim.per_leaf import in_float32, per_leaf
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.optim.trust_ratio import ScaleByTrustRatioState, TrustRatio
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import ArrayLike, DTypeLike, Schedule

__all__ = ["lamb", "lamb_stages"]


@answering
def lamb_stages(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
) -> tuple[Stage, ...]:
    """Returns the stages of LAMB: Adam, decay, trust ratio, learning rate.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> [type(stage).__name__ for stage in lamb_stages()]
        ['Adam', 'Place', 'TrustRatio', 'Place']
    """
    return (adam_rule(b1, b2, eps, eps_root), DECAY, TrustRatio(), RATE)


@named
def lamb(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adam whose steps are `learning_rate` times the norm of each array.

    An array of one entry keeps its sign: it moves by that share of itself.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        weight_decay: a number >= 0, or a schedule. It counts in the norm of the update.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        state_dtype: dtype in which both moments are stored, with arithmetic and updates in
            float32 or wider; None: everything in the dtype of parameters and gradients.

    Returns:
        A transformation whose state is that of a chain of four. Its `update` needs the
        parameters.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = lamb(0.1), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([1.0, 0.0]), tx.init(x), x)
        >>> print([round(float(entry), 4) for entry in x + updates])
        [2.5, 4.0]
    """
    check_learning_rate(learning_rate, where="lamb")
    parts = chain(
        scale_by_adam(b1, b2, eps, eps_root, state_dtype=state_dtype),
        add_decayed_weights(weight_decay, mask),
        per_leaf(TrustRatio(), state=ScaleByTrustRatioState, state_dtype=state_dtype),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)
