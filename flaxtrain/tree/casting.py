"""Dtypes of trees."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentError, ParameterError
from flaxtrain.tree.paths import named_leaves
from flaxtrain.typing import DTypeLike, PyTree

__all__ = ["cast", "cast_like", "dtype"]

_HANDLERS = ("promote", "highest", "lowest")


def cast(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """Returns the tree with every leaf in `dtype`; None leaves them as they are.

    Example:
        >>> cast({"a": jnp.ones(2), "b": 1.0}, jnp.bfloat16)["a"].dtype
        dtype(bfloat16)
    """
    return tree if dtype is None else jax.tree.map(lambda leaf: _as(leaf, dtype), tree)


def cast_like(tree: PyTree, other_tree: PyTree) -> PyTree:
    """Returns the tree with every leaf in the dtype of the same leaf of `other_tree`.

    A leaf whose counterpart has no dtype (a Python number) stays as it is.

    Example:
        >>> cast_like({"a": jnp.ones(2)}, {"a": jnp.ones(2, jnp.bfloat16)})["a"].dtype
        dtype(bfloat16)
    """
    return jax.tree.map(
        lambda leaf, other: _as(leaf, other.dtype) if hasattr(other, "dtype") else leaf,
        tree,
        other_tree,
    )


def _as(leaf: Any, dtype: DTypeLike) -> Any:
    return leaf.astype(dtype) if hasattr(leaf, "astype") else jnp.asarray(leaf, dtype)


def dtype(tree: PyTree, mixed_dtype_handler: str | None = None) -> np.dtype[Any]:
    """Returns the dtype that all leaves have, or one that stands for them.

    Args:
        tree: any pytree of arrays or numbers; an empty one has jax's default dtype.
        mixed_dtype_handler: what to do with several dtypes. None: an error. `"promote"`: the
            dtype that jax promotes them to. `"highest"`, `"lowest"`: the one among them that
            all others promote to, or that promotes to all others.

    Raises:
        ParameterError: there are several dtypes, and no handler; or none of two dtypes
            promotes to the other.
        ArgumentError: the handler is not known.

    Example:
        >>> mixed = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
        >>> dtype(mixed, "highest"), dtype(mixed, "lowest")
        (dtype('float32'), dtype(bfloat16))
    """
    if mixed_dtype_handler is not None and mixed_dtype_handler not in _HANDLERS:
        raise ArgumentError(
            f"mixed_dtype_handler={mixed_dtype_handler!r} is not known",
            where="tree.dtype",
            fix=f"pass None or one of {', '.join(map(repr, _HANDLERS))}",
        )
    found = {name: jnp.asarray(leaf).dtype for name, leaf in named_leaves(tree)}
    if not found:
        return jnp.asarray([]).dtype
    if mixed_dtype_handler == "promote":
        return functools.reduce(jnp.promote_types, found.values())
    if mixed_dtype_handler is not None:
        pick = _higher if mixed_dtype_handler == "highest" else _lower
        return functools.reduce(pick, found.values())
    first = next(iter(found.values()))
    others = [f"{name}: {other}" for name, other in found.items() if other != first]
    if others:
        raise ParameterError(
            f"leaves have several dtypes: {next(iter(found))}: {first}, {', '.join(others)}",
            where="tree.dtype",
            fix='pass mixed_dtype_handler="promote", "highest" or "lowest"',
        )
    return first


def _higher(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    return b if _lower(a, b) == a else a


def _lower(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    promoted = jnp.promote_types(a, b)
    if promoted == a:
        return b
    if promoted == b:
        return a
    raise ParameterError(
        f"neither of {a} and {b} promotes to the other",
        where="tree.dtype",
        fix=f'pass mixed_dtype_handler="promote", which gives {promoted}',
    )
