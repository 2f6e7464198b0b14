"""Constraints: parameters that stay nonnegative, updates without NaN."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtrain.errors import ParameterError
from flaxtrain.optim.per_leaf import per_leaf
from flaxtrain.optim.rule import Rule, rule
from flaxtrain.optim.transform import (
    EmptyState,
    GradientTransformation,
    named,
    require_params,
    stateless,
)
from flaxtrain.tree import is_none
from flaxtrain.typing import Array, ArrayLike, Params, Updates

__all__ = [
    "NonNegativeParamsState",
    "ZeroNans",
    "ZeroNansSlots",
    "ZeroNansState",
    "keep_params_nonnegative",
    "zero_nans",
]

NonNegativeParamsState = EmptyState
"""The constraint remembers nothing."""


@named
def keep_params_nonnegative() -> GradientTransformation:
    """Makes the transformation that stops every parameter at 0.

    An update that would lead below 0 leads to 0; so does any update of a parameter that is
    below 0 and would stay there. It belongs at the end of a chain.

    Returns:
        A transformation without state. Its `update` needs the parameters.

    Raises:
        ParameterError: (from `update`) there are no parameters, or complex ones.

    Example:
        >>> tx, params = keep_params_nonnegative(), jnp.array([1.0, 1.0])
        >>> updates, state = tx.update(jnp.array([-0.5, -2.0]), tx.init(params), params)
        >>> print(params + updates)
        [0.5 0. ]
    """

    def bounded(update: ArrayLike | None, param: ArrayLike | None) -> Array | None:
        if param is None or update is None:
            return None
        u, p = jnp.asarray(update), jnp.asarray(param)
        if jnp.iscomplexobj(p):
            raise ParameterError(
                "complex parameters have no sign",
                where="keep_params_nonnegative: update(updates, state, params)",
                fix="apply it to the real ones only: masked(keep_params_nonnegative(), mask)",
            )
        return jnp.where(p + u < 0, -p, u)

    def apply(updates: Updates, params: Params | None) -> Updates:
        require_params(params, "keep_params_nonnegative")
        return jax.tree.map(bounded, updates, params, is_leaf=is_none)

    return stateless(apply)


class ZeroNansSlots(NamedTuple):
    """Whether the last update of one array held NaN."""

    found_nan: Array


class ZeroNansState(NamedTuple):
    """Whether the last update of each parameter held NaN, a tree of scalar bools."""

    found_nan: Updates


@rule
class ZeroNans(Rule):
    """Zeros in place of NaN, for one array."""

    Slots = ZeroNansSlots

    def init(self, param: Array) -> ZeroNansSlots:
        """Returns that nothing was found."""
        return ZeroNansSlots(jnp.zeros([], jnp.bool_))

    def update(
        self, grad: Array, slots: ZeroNansSlots, param: Array | None, scalars: None
    ) -> tuple[Array, ZeroNansSlots]:
        """Returns the update without NaN, and whether there was any."""
        is_nan = jnp.isnan(grad)
        return jnp.where(is_nan, jnp.zeros_like(grad), grad), ZeroNansSlots(jnp.any(is_nan))


@named
def zero_nans() -> GradientTransformation:
    """Makes the transformation that replaces NaN in the updates by 0.

    Infinities stay. It belongs in front of what remembers gradients. A step that should not
    count at all when something is not finite is what the training step's own check is for.

    Returns:
        A transformation whose state is a `ZeroNansState`: which parameters were affected by the
        last update. Nothing reads it; it is there to be looked at.

    Example:
        >>> tx, grads = zero_nans(), {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array(jnp.inf)}
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> print(updates["a"], updates["b"], state.found_nan["a"], state.found_nan["b"])
        [1. 0.] inf True False
    """
    return per_leaf(ZeroNans(), state=ZeroNansState)
