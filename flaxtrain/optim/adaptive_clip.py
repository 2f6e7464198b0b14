"""Adaptive gradient clipping: a bound relative to the parameter, for each unit.

Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
arXiv:2102.06171, equation 3.

For one unit, the weights W that lead into one output, and their gradient G:
    G <- clipping max(|W|, eps) / |G| G        if |G| >= clipping max(|W|, eps)
Which axes make a unit follows from the rank, for the layouts of Linen: the whole of a vector;
the first axis of a matrix (in, out) and of rank 3 (in, heads, features); all but the last axis
of convolution kernels. In rank 3, kernels of 1-D convolutions are meant to be summed over two
axes, so they need `axis=(0, 1)`. `eps` lets parameters of zeros start.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_integer, check_number
from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.optim.moments import squared_magnitude
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import NoSlots, Rule, rule
from flaxtrain.optim.transform import EmptyState, GradientTransformation, named
from flaxtrain.typing import Array, ArrayLike

__all__ = [
    "AdaptiveClip",
    "AdaptiveGradClipState",
    "adaptive_grad_clip",
    "unitwise_clip",
    "unitwise_norm",
]

AdaptiveGradClipState = EmptyState
"""Adaptive clipping remembers nothing."""


def unitwise_norm(x: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Array:
    """Returns the L2 norm of each unit of `x`, at every entry of it.

    Args:
        x: an array of any shape, real or complex.
        axis: the axes of a unit. None: all of a vector (axes of size one don't count), the
            first of rank 2 and 3, all but the last from rank 4 on.

    Returns:
        A real array of the shape of `x`.

    Raises:
        ParameterError: `x` has no such axis.

    Example:
        >>> print(unitwise_norm(jnp.array([[3.0, 1.0], [4.0, 0.0]])))
        [[5. 1.]
         [5. 1.]]
    """
    x = jnp.asarray(x)
    squares = jnp.sum(squared_magnitude(x), axis=_unit(x.shape, axis), keepdims=True)
    return jnp.broadcast_to(jnp.sqrt(squares), x.shape)


def _unit(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the axes of a unit; None: all."""
    rank = len(shape)
    if axis is not None:
        axes = tuple(axis) if isinstance(axis, (tuple, list)) else (int(axis),)
        if not all(-rank <= a < rank for a in axes):
            raise ParameterError(
                f"an array of shape {shape} has no axis {axis}",
                where="unitwise_norm(x, axis)",
                fix="use axis for the arrays that have it (`masked`), or axis=None",
            )
        return axes
    if sum(size != 1 for size in shape) <= 1:
        return None
    return (0,) if rank <= 3 else tuple(range(rank - 1))


def unitwise_clip(
    g_norm: ArrayLike, max_norm: ArrayLike, grad: ArrayLike, div_eps: ArrayLike = 1e-6
) -> Array:
    """Returns `grad`, with units of too large a norm made shorter.

    Args:
        g_norm: the norm of each unit of the gradient, at every entry.
        max_norm: the largest norm allowed, likewise.
        grad: the gradient; all three have one shape.
        div_eps: the smallest divisor, > 0.

    Raises:
        ParameterError: the shapes differ.

    Example:
        >>> grad = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> print(unitwise_clip(unitwise_norm(grad), jnp.full((2, 2), 2.0), grad))
        [[1.2 1. ]
         [1.6 0. ]]
    """
    shapes = [jnp.shape(array) for array in (g_norm, max_norm, grad)]
    if len(set(shapes)) > 1:
        raise ParameterError(
            f"g_norm, max_norm and grad have the shapes {shapes}",
            where="unitwise_clip",
            fix="pass norms as unitwise_norm returns them",
        )
    g_norm, grad = jnp.asarray(g_norm), jnp.asarray(grad)
    shorter = grad * (max_norm / jnp.maximum(g_norm, div_eps))
    return jnp.where(g_norm < max_norm, grad, shorter)


@rule
class AdaptiveClip(Rule):
    """Adaptive clipping for one array.

    Attributes:
        clipping: largest ratio of the norms of gradient and parameter.
        eps: smallest norm of the parameter that is taken into account.
        axis: the axes of a unit; None: by rank.
    """

    clipping: ArrayLike
    eps: ArrayLike = 1e-3
    axis: int | tuple[int, ...] | None = None

    needs_params = True

    def update(
        self, grad: Array, slots: NoSlots, param: Array | None, scalars: None
    ) -> tuple[Array, NoSlots]:
        """Returns the gradient, clipped."""
        assert param is not None
        max_norm = self.clipping * jnp.maximum(unitwise_norm(param, self.axis), self.eps)
        return unitwise_clip(unitwise_norm(grad, self.axis), max_norm, grad), slots


@named
def adaptive_grad_clip(
    clipping: ArrayLike, eps: ArrayLike = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    """Makes the transformation that bounds each unit's gradient by a share of its parameter.

    Args:
        clipping: largest ratio of the norms of gradient and parameter, > 0.
        eps: smallest norm of the parameter that is taken into account, >= 0.
        axis: the axes of a unit, as for `unitwise_norm`; all arrays must have them.

    Returns:
        A transformation without state. Its `update` needs the parameters.

    Raises:
        ArgumentError: `clipping` is not positive, `eps` is negative, or an axis is named twice.
        ArgumentTypeError: a value has the wrong type.
        ParameterError: (from `update`) an array has no such axis.

    Example:
        >>> tx, params = adaptive_grad_clip(0.1), jnp.array([[3.0], [4.0]])
        >>> updates, state = tx.update(jnp.array([[0.0], [2.0]]), tx.init(params), params)
        >>> print(updates[1])
        [0.5]
    """
    where = "adaptive_grad_clip"
    check_number("clipping", clipping, minimum=0.0, exclude=(0.0,), finite=False, where=where)
    check_number("eps", eps, minimum=0.0, where=where)
    return per_leaf(
        AdaptiveClip(clipping, eps, _checked_axis(axis)), state=AdaptiveGradClipState
    )


def _checked_axis(axis: Any) -> int | tuple[int, ...] | None:
    if axis is None:
        return None
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    for one in axes:
        check_integer("axis", one, where="adaptive_grad_clip")
    if not axes or len(set(axes)) < len(axes):
        raise ArgumentError(
            f"axis={axis} names no axis, or one twice",
            where="adaptive_grad_clip",
            fix="name each axis of a unit once",
        )
    return tuple(int(np.asarray(one)) for one in axes)
