"""The few names of Optax that need more than another address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flaxtrain import optim, tree
from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim import EmptyState, GradientTransformation
from flaxtrain.precision import DynamicScale
from flaxtrain.typing import Array, ArrayLike, Params, PyTree, Schedule, Updates

__all__ = [
    "AddDecayedWeightsState",
    "MaskOrFn",
    "ScalarOrSchedule",
    "global_norm",
    "scale_gradient",
    "stateless",
]

AddDecayedWeightsState = EmptyState
"""A constant weight decay remembers nothing."""

MaskOrFn: TypeAlias = optim.Mask | None
"""A tree of bools, or a function from parameters to one."""

ScalarOrSchedule: TypeAlias = ArrayLike | Schedule
"""A number, or a function of the count."""

_ABSENT: Any = object()


def scale_gradient(inputs: PyTree = _ABSENT, scale: Any = _ABSENT) -> Any:
    """Returns `inputs`, whose gradients are multiplied by `scale`; or else a loss scale.

    Optax has the first only. The second is what `scale_gradient(scale=2.0**15)` means in
    mixed-precision recipes: a `DynamicScale`, with `scale(loss)`, `unscale(grads)` and
    `adjust(finite)`.

    Args:
        inputs: any pytree of arrays; left out for a loss scale.
        scale: the factor.

    Raises:
        ArgumentTypeError: `scale` is missing, or not a number; a loss scale that is not known
            while tracing.
        ArgumentError: `scale` is not finite, or a loss scale that is not positive.

    Example:
        >>> import jax
        >>> print(jax.grad(lambda x: scale_gradient(x, 3.0) ** 2)(1.0))
        6.0
        >>> print(scale_gradient(scale=4.0).scale(jax.numpy.float32(2.0)))
        8.0
    """
    if scale is _ABSENT:
        raise ArgumentTypeError(
            "scale is missing",
            where="scale_gradient",
            fix="scale_gradient(inputs, scale), or scale_gradient(scale=2.0**15)",
        )
    if inputs is _ABSENT:
        check_number("scale", scale, minimum=0.0, exclude=(0.0,), where="scale_gradient")
        if not is_concrete(scale):
            raise ArgumentTypeError(
                "a loss scale that is not known while tracing",
                where="scale_gradient",
                fix="make the loss scale outside the traced function, and pass it in",
            )
        limits, scale = DynamicScale(), float(scale)
        return DynamicScale(init=scale, min=min(limits.min, scale), max=max(limits.max, scale))
    return optim.scale_gradient(inputs, scale)


def global_norm(updates: Updates) -> Array:
    """Returns the Euclidean norm of all entries of a tree together.

    Example:
        >>> import jax
        >>> print(global_norm({"w": jax.numpy.array([3.0, 4.0])}))
        5.0
    """
    return tree.global_norm(updates)


def stateless(f: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """Makes a transformation without state from `f(updates, params) -> updates`.

    Example:
        >>> stateless(lambda updates, params: updates * 2).update(3.0, EmptyState())[0]
        6.0
    """
    return optim.stateless(f)
