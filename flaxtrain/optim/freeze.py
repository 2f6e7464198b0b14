"""Holding parameters still.

A frozen parameter gets the update -0.0: adding it changes no bit of any number, where +0.0
would turn a parameter -0.0 into +0.0. `selective_transform` also keeps frozen parameters out of
the optimizer, which then has no state for them; `freeze` comes last in a chain and overrides.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.optim.combine import Mask, mask_function, masked
from flaxtrain.optim.partition import by_label
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    stateless,
    with_extra_args,
)
from flaxtrain.typing import Array, Params, PyTree

__all__ = ["freeze", "selective_transform", "set_to_zero"]


@named
def set_to_zero() -> GradientTransformation:
    """Makes the transformation whose updates are zero, whatever it gets (NaN too).

    Zeros are -0.0, which leaves every bit of a parameter as it is.

    Example:
        >>> tx = set_to_zero()
        >>> updates, state = tx.update({"w": jnp.array([1.0, jnp.nan])}, tx.init(None))
        >>> print(updates["w"])
        [-0. -0.]
    """
    return stateless(lambda updates, params: jax.tree.map(_zero, updates))


def _zero(update: Any) -> Array:
    zeros = jnp.zeros_like(update)
    return jnp.negative(zeros) if jnp.issubdtype(zeros.dtype, jnp.inexact) else zeros


@named
def freeze(mask: Mask) -> GradientTransformation:
    """Makes the transformation that sets the updates of some parameters to zero.

    It goes to the end of a chain, behind weight decay and the learning rate.

    Args:
        mask: True where a parameter is frozen: one bool, a tree of bools, patterns, or a
            function; see `Mask`.

    Returns:
        A transformation whose state is a `MaskedState`.

    Raises:
        ArgumentTypeError: the mask has a leaf that is not a bool.
        ParameterError: (from `init`, `update`) the mask does not fit the parameters.

    Example:
        >>> from flaxtrain.optim import chain, sgd
        >>> tx = chain(sgd(0.1), freeze({"encoder": True, "head": False}))
        >>> grads = {"encoder": jnp.float32(1.0), "head": jnp.float32(1.0)}
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> print(updates["encoder"], updates["head"])
        -0.0 -0.1
    """
    return masked(set_to_zero(), mask)


@named
def selective_transform(
    optimizer: TransformationLike, *, freeze_mask: Mask
) -> GradientTransformation:
    """Makes an optimizer of the parameters that are not frozen; the others get zero updates.

    Frozen parameters are not seen by `optimizer` at all: they take no part in norms, and there
    is no state for them.

    Args:
        optimizer: the optimizer of all other parameters.
        freeze_mask: True where a parameter is frozen, as for `freeze`.

    Returns:
        A transformation whose state is a `PartitionState` with the groups `train` and
        `freeze`.

    Raises:
        ArgumentTypeError: `optimizer` is not a transformation, or the mask has a leaf that is
            not a bool.
        ParameterError: (from `init`, `update`) the mask does not fit the parameters.

    Example:
        >>> from flaxtrain.optim import adam
        >>> tx = selective_transform(adam(0.1), freeze_mask={"encoder": True, "head": False})
        >>> grads = {"encoder": jnp.ones((512, 512)), "head": jnp.float32(1.0)}
        >>> state = tx.init(grads)
        >>> sum(leaf.size for leaf in jax.tree.leaves(state))
        3
    """
    mask_of = mask_function(freeze_mask)

    def labels_of(params: Params) -> PyTree:
        return jax.tree.map(
            lambda is_frozen: "freeze" if is_frozen else "train", mask_of(params)
        )

    return by_label({"train": with_extra_args(optimizer), "freeze": set_to_zero()}, labels_of)
