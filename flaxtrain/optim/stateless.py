"""Transformations without state, and the names by which other code knows the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

from flaxtrain.optim.transform import (
    EmptyState,
    GradientTransformation,
    InitFn,
    UpdateFn,
    stateless,
    with_extra_args,
)
from flaxtrain.typing import OptState, Params, Updates

__all__ = [
    "GradientTransformationExtraArgs",
    "TransformInitFn",
    "TransformUpdateExtraArgsFn",
    "TransformUpdateFn",
    "init_empty_state",
    "stateless_with_tree_map",
    "with_extra_args_support",
]

GradientTransformationExtraArgs: TypeAlias = GradientTransformation
"""Every `update` of ours takes extra arguments, so there is one class for both."""

TransformInitFn: TypeAlias = InitFn
"""`init(params) -> state`."""

TransformUpdateExtraArgsFn: TypeAlias = UpdateFn
"""`update(updates, state, params=None, **extra_args) -> (updates, state)`."""

with_extra_args_support = with_extra_args
"""Returns a transformation whose `update` accepts any extra keyword argument."""


@runtime_checkable
class TransformUpdateFn(Protocol):
    """`update(updates, state, params=None) -> (updates, state)`."""

    def __call__(
        self, updates: Updates, state: OptState, params: Params | None = None
    ) -> tuple[Updates, OptState]:
        """Returns the transformed updates and the new state."""
        ...


def init_empty_state(params: Params) -> EmptyState:
    """Returns the state of a transformation that remembers nothing.

    Example:
        >>> init_empty_state({"w": 1.0})
        EmptyState()
    """
    return EmptyState()


def stateless_with_tree_map(f: Callable[[Any, Any], Any]) -> GradientTransformation:
    """Makes a transformation without state from a function of one array and its parameter.

    Args:
        f: `f(update, param) -> update`; `param` is None where `update` gets no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = stateless_with_tree_map(lambda update, param: update + 0.5 * param)
        >>> grads, params = {"w": jnp.ones(2)}, {"w": jnp.array([2.0, 4.0])}
        >>> print(tx.update(grads, tx.init(params), params)[0]["w"])
        [2. 3.]
    """

    def mapped(updates: Updates, params: Params | None) -> Updates:
        if params is None:
            return jax.tree.map(lambda update: f(update, None), updates)
        return jax.tree.map(f, updates, params)

    return stateless(mapped)
