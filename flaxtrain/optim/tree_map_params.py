"""Finding the parts of a state that are trees like the parameters.

A state is made once more from a stand-in for the parameters, a node without leaves. Wherever
the stand-in turns up in the result, the real state has a tree like the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.typing import OptState

__all__ = ["tree_map_params"]


@jax.tree_util.register_pytree_node_class
class _Parameters:
    """Stands for the tree of parameters."""

    def tree_flatten(self) -> tuple[tuple[()], None]:
        return (), None

    @classmethod
    def tree_unflatten(cls, structure: None, children: Any) -> _Parameters:
        return cls()


def tree_map_params(
    initable: Any,
    f: Callable[..., Any],
    state: OptState,
    /,
    *rest: Any,
    transform_non_params: Callable[[Any], Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> OptState:
    """Applies a function to those parts of a state that are trees like the parameters.

    So a sharding or a name that is known for every parameter is given to its slots as well.

    Args:
        initable: the transformation that made `state`, or its `init`. It must not look into the
            parameters, only map over them.
        f: `f(slot, *matching leaves of rest)`, called for every leaf of every such part.
        state: the state.
        *rest: trees like the parameters.
        transform_non_params: called for every other leaf; None: these stay as they are.
        is_leaf: where to stop in those parts, as in `jax.tree.map`.

    Returns:
        A tree like `state`.

    Raises:
        ArgumentTypeError: `initable` is neither callable nor has an `init`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxtrain.optim import trace
        >>> tx, params = trace(0.9), {"w": jnp.ones(2), "b": jnp.ones(1)}
        >>> names = {"w": "model", "b": None}
        >>> tree_map_params(tx, lambda slot, name: f"on {name}", tx.init(params), names,
        ...                 is_leaf=lambda leaf: leaf is None)
        TraceState(trace={'b': 'on None', 'w': 'on model'})
    """
    init = getattr(initable, "init", initable)
    if not callable(init):
        raise ArgumentTypeError(
            f"{initable!r} is neither a transformation nor an init function",
            where="tree_map_params(initable, f, state)",
            fix="pass the transformation that made the state",
        )

    def visit(found: Any, value: Any) -> Any:
        if isinstance(found, _Parameters):
            return jax.tree.map(f, value, *rest, is_leaf=is_leaf)
        return value if transform_non_params is None else transform_non_params(value)

    return jax.tree.map(
        visit, init(_Parameters()), state, is_leaf=lambda node: isinstance(node, _Parameters)
    )
