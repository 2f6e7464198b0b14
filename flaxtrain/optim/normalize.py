"""Updates of a fixed length, and of mean zero.

`normalize_by_update_norm`, over all updates u together:
    u <- scale_factor u / (|u| + eps)
Yong et al. 2020, "Gradient Centralization: A New Optimization Technique for Deep Neural
Networks", arXiv:2004.01461, equation 1 (`centralize`). For each unit g of one array:
    g <- g - mean(g)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_integer, check_number
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named, stateless
from flaxtrain.tree import global_norm
from flaxtrain.typing import Array, ArrayLike, Params, Updates

__all__ = ["Centralize", "centralize", "normalize_by_update_norm"]


@named
def normalize_by_update_norm(
    scale_factor: ArrayLike = 1.0, eps: ArrayLike = 1e-6
) -> GradientTransformation:
    """Makes the transformation that gives all updates together the L2 norm `scale_factor`.

    Args:
        scale_factor: the norm of the result; a negative one turns the direction round.
        eps: added to the norm, >= 0. Updates that are all zero stay zero also without it.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: a value is not finite, or `eps` is negative.
        ArgumentTypeError: a value is not a number.

    Example:
        >>> tx = normalize_by_update_norm(scale_factor=10.0, eps=0.0)
        >>> updates, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(None))
        >>> print(updates["w"])
        [6. 8.]
    """
    check_number("scale_factor", scale_factor, where="normalize_by_update_norm")
    check_number("eps", eps, minimum=0.0, where="normalize_by_update_norm")

    def apply(updates: Updates, params: Params | None) -> Updates:
        updates = jax.tree.map(jnp.asarray, updates)
        divisor = (global_norm(updates) + eps) / scale_factor
        divisor = jnp.where(divisor == 0, 1, divisor)
        return jax.tree.map(lambda update: update / divisor, updates)

    return stateless(apply)


@rule
class Centralize(Rule):
    """Mean zero over all axes but one, for one array of two axes or more.

    Attributes:
        output_axis: the axis whose entries are units.
    """

    output_axis: int = 0

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the gradient without its means."""
        if grad.ndim < 2:
            return grad, slots
        kept = self.output_axis % grad.ndim
        axes = tuple(axis for axis in range(grad.ndim) if axis != kept)
        return grad - jnp.mean(grad, axes, keepdims=True), slots


@named
def centralize(*, output_axis: int = 0) -> GradientTransformation:
    """Makes the transformation that subtracts from each unit's gradient its mean.

    Vectors and scalars stay as they are.

    Args:
        output_axis: the axis whose entries are the units, 0 or -1. The paper's units are the
            outputs of a layer. These are the last axis of Linen's kernels, so for them it is
            -1; 0 takes the mean over what belongs to one input.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: `output_axis` is not 0 or -1.
        ArgumentTypeError: `output_axis` is not an integer.

    Example:
        >>> grad = jnp.array([[1.0, 4.0], [3.0, 4.0]])
        >>> print(centralize(output_axis=-1).update(grad, EmptyState())[0])
        [[-1.  0.]
         [ 1.  0.]]
        >>> print(centralize().update(grad, EmptyState())[0])
        [[-1.5  1.5]
         [-0.5  0.5]]
    """
    check_integer("output_axis", output_axis, where="centralize")
    check_number("output_axis", output_axis, minimum=-1.0, maximum=0.0, where="centralize")
    return per_leaf(Centralize(int(output_axis)), state=EmptyState)
