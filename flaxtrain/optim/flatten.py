"""Running a transformation on few long vectors instead of many small arrays.

There is one vector for each dtype of the parameters, so that no leaf is promoted. Where all
leaves have one dtype the transformation inside sees the bare vector, else a dict from the name
of the dtype to its vector.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ParameterError
from flaxtrain.optim.transform import (
    GradientTransformation,
    TransformationLike,
    named,
    with_extra_args,
)
from flaxtrain.typing import Array, OptState, Params, PyTree, Updates

__all__ = ["flatten"]


@named
def flatten(inner: TransformationLike) -> GradientTransformation:
    """Applies `inner` to all leaves together, concatenated.

    That saves kernel launches for many small arrays, and costs one copy of the tree; arrays
    that are sharded lose their sharding. `inner` can't tell one leaf from another, so it must
    not depend on shapes or names.

    Args:
        inner: the transformation.

    Returns:
        A transformation whose state is that of `inner` for the vector, or for the dict of
        vectors of parameters of several dtypes. With those, and gradients of other dtypes,
        `update` needs the parameters.

    Raises:
        ArgumentTypeError: `inner` is not a transformation.
        ParameterError: (from `update`) updates and parameters have different leaves.

    Example:
        >>> from flaxtrain.optim import trace
        >>> tx, params = flatten(trace(0.5)), {"w": jnp.ones((2, 2)), "b": jnp.zeros(1)}
        >>> updates, state = tx.update(params, tx.init(params))
        >>> print(updates["w"].shape, state.trace)
        (2, 2) [0. 1. 1. 1. 1.]
    """
    part = with_extra_args(inner)

    def init(params: Params, /) -> OptState:
        return part.init(_joined(params, _dtypes(params)))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        _check_leaves(updates, params)
        dtypes = _dtypes(updates if params is None else params)
        vectors = None if params is None else _joined(params, dtypes)
        new, state = part.update(_joined(updates, dtypes), state, vectors, **extra_args)
        return _split(new, updates, dtypes), state

    return GradientTransformation(init, update)


def _check_leaves(updates: Updates, params: Params | None) -> None:
    if params is not None and jax.tree.structure(updates) != jax.tree.structure(params):
        raise ParameterError(
            "updates and parameters are trees of different structure",
            where="flatten: update(updates, state, params)",
            fix="pass gradients of exactly these parameters, zeros instead of None",
        )


def _dtypes(tree: PyTree) -> list[str]:
    return [jnp.asarray(leaf).dtype.name for leaf in jax.tree.leaves(tree)]


def _joined(tree: PyTree, dtypes: list[str]) -> Array | dict[str, Array]:
    """Returns the vector of all leaves, or one for each dtype."""
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    groups = {
        name: jnp.concatenate([leaf for leaf, own in zip(leaves, dtypes) if own == name])
        for name in sorted(set(dtypes))
    }
    if len(groups) == 1:
        return groups[dtypes[0]]
    return groups or jnp.zeros(0)


def _split(new: Any, tree: PyTree, dtypes: list[str]) -> PyTree:
    """Returns the parts of the vectors in the shapes of the leaves of `tree`."""
    groups: Any = new if len(set(dtypes)) > 1 else dict.fromkeys(dtypes, new)
    leaves, structure = jax.tree.flatten(tree)
    used, parts = dict.fromkeys(dtypes, 0), []
    for leaf, name in zip(leaves, dtypes):
        begin = used[name]
        used[name] = begin + int(np.size(leaf))
        parts.append(groups[name][begin : used[name]].reshape(np.shape(leaf)))
    return jax.tree.unflatten(structure, parts)
