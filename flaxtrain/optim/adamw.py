"""AdamW: Adam with decoupled weight decay.

Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization", arXiv:1711.05101.

The decay is added after the preconditioner and before the learning rate:
    x <- x - learning_rate (u + weight_decay x)
with `u` of `adam`. So the decay is scaled by the learning rate, as in PyTorch and Optax, where
the paper's Algorithm 2 scales it by the schedule's factor alone.
"""

from __future__ import annotations

from typing import Any

from flaxtrain.optim.adam import scale_by_adam
from flaxtrain.optim.combine import Mask, chain
from flaxtrain.optim.per_leaf import in_float32
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.transform import GradientTransformation, named
from flaxtrain.optim.weight_decay import add_decayed_weights
from flaxtrain.typing import ArrayLike, DTypeLike, Schedule

__all__ = ["adamw", "nadamw"]


@named
def adamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay: parameters shrink by `learning_rate * weight_decay`.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator, >= 0.
        eps_root: added under the root, >= 0.
        mu_dtype: dtype in which the first moment is stored; None: that of the parameter.
        weight_decay: a number >= 0, or a schedule; it is multiplied by the learning rate.
        mask: a tree of bools like the parameters or a prefix of it, or a function from the
            parameters to one: which of them decay. None: all.
        nesterov: look one step ahead (NadamW).
        state_dtype: as for `scale_by_adam`.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = adamw(0.1, weight_decay=0.5, mask={"kernel": True, "bias": False})
        >>> params = {"kernel": jnp.float32(1.0), "bias": jnp.float32(1.0)}
        >>> zero = {"kernel": jnp.float32(0.0), "bias": jnp.float32(0.0)}
        >>> updates, state = tx.update(zero, tx.init(params), params)
        >>> print(updates["kernel"], updates["bias"])
        -0.05 -0.0
    """
    check_learning_rate(learning_rate, where="adamw")
    moments: dict[str, Any] = {"nesterov": nesterov, "state_dtype": state_dtype}
    parts = chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, **moments),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return in_float32(parts, state_dtype)


@named
def nadamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = True,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """AdamW with Nesterov's look ahead: `adamw` with `nesterov=True`. Arguments are `adamw`'s.

    Raises:
        ArgumentError: a value is out of range, or both dtypes are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = nadamw(0.1, weight_decay=1.0), jnp.float32(1.0)
        >>> updates, state = tx.update(0 * x, tx.init(x), x)
        >>> print(round(float(x + updates), 4))
        0.9
    """
    return adamw(
        learning_rate,
        *(b1, b2, eps, eps_root, mu_dtype, weight_decay, mask),
        nesterov=nesterov,
        state_dtype=state_dtype,
    )
