"""Adding updates to parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxtrain.errors import ParameterError
from flaxtrain.tree import named_leaves
from flaxtrain.typing import ArrayLike, Params, Updates

__all__ = ["apply_updates"]


def apply_updates(params: Params, updates: Updates) -> Params:
    """Returns `params + updates`, each leaf in the dtype of its parameter.

    The sum is formed in the wider of the two dtypes and rounded once.

    Args:
        params: any pytree of arrays; `None` leaves stay `None`.
        updates: a tree like `params`; where it has `None`, the parameter is left as it is.

    Raises:
        ParameterError: the trees differ.

    Example:
        >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
        >>> apply_updates(params, {"w": jnp.array([0.5, -1.0])})
        {'w': Array([1.5, 0], dtype=bfloat16)}
    """
    try:
        return jax.tree.map(_add, params, updates, is_leaf=lambda leaf: leaf is None)
    except ValueError as error:
        have, want = ({name for name, _ in named_leaves(tree)} for tree in (updates, params))
        if have == want:
            raise
        raise ParameterError(
            "parameters and updates are trees of different structure",
            where=f"missing {sorted(want - have)[:3]}, unexpected {sorted(have - want)[:3]}",
            fix="pass updates made from gradients of exactly these parameters",
        ) from error


def _add(param: ArrayLike | None, update: ArrayLike | None) -> ArrayLike | None:
    if param is None or update is None:
        return param
    return jnp.asarray(param + update).astype(jnp.asarray(param).dtype)
