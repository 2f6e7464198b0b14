"""The dtypes in which things are stored: what is asked for, and what an update gives back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import floating_dtype
from flaxtrain.errors import ArgumentError
from flaxtrain.typing import Array, DTypeLike, PyTree

__all__ = ["check_dtype", "stored_dtype", "with_dtypes_of"]


def check_dtype(
    name: str, dtype: Any, *, where: str, instead_of: Any = None
) -> np.dtype[Any] | None:
    """Returns the dtype that jax will use for `dtype`; None stays None.

    Args:
        name: the argument's name, for the message.
        dtype: a float dtype, its name, or None.
        where: the function that was called.
        instead_of: another argument for a dtype that excludes this one.

    Raises:
        ArgumentTypeError: it is not a floating or complex dtype.
        ArgumentError: both dtypes are given.

    Example:
        >>> check_dtype("mu_dtype", "bfloat16", where="adam")
        dtype(bfloat16)
    """
    if dtype is None:
        return None
    if instead_of is not None:
        raise ArgumentError(
            f"{name}={dtype!r} and {instead_of!r} both say how slots are stored",
            where=where,
            fix=f"pass {name} only",
        )
    return jax.dtypes.canonicalize_dtype(floating_dtype(name, dtype, where=where))


def stored_dtype(array: Array, dtype: DTypeLike | None) -> DTypeLike:
    """Returns the dtype in which a slot is stored: the array's own where `dtype` is None.

    A complex slot stays complex, with at least the precision of `dtype`; integers stay as they
    are.

    Example:
        >>> print(stored_dtype(jnp.ones(1), jnp.bfloat16), stored_dtype(jnp.ones(1), None))
        bfloat16 float32
        >>> print(stored_dtype(jnp.ones(1, jnp.complex64), jnp.bfloat16))
        complex64
    """
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.dtype
    if jnp.iscomplexobj(array):
        return jnp.promote_types(dtype, jnp.complex64)
    return jnp.dtype(dtype)


def with_dtypes_of(tree: PyTree, like: PyTree) -> PyTree:
    """Returns `tree` with every leaf in the dtype of its partner in `like`, where it has one.

    Raises:
        ArgumentError: the trees differ.

    Example:
        >>> with_dtypes_of({"a": jnp.ones(1)}, {"a": jnp.ones(1, jnp.bfloat16)})["a"].dtype
        dtype(bfloat16)
    """
    try:
        return jax.tree.map(_cast, tree, like)
    except ValueError as error:
        raise ArgumentError(
            f"a tree changed its structure in an update: {error}",
            where="a wrapper that keeps the state of the transformation inside",
            fix="make the transformation inside keep the structure of updates and state",
        ) from None


def _cast(leaf: Any, like: Any) -> Any:
    if not hasattr(like, "dtype"):
        return leaf
    # numpy's float64 is float32 here, unless jax is told otherwise.
    dtype: Any = jax.dtypes.canonicalize_dtype(like.dtype, allow_extended_dtype=True)
    if getattr(leaf, "dtype", None) == dtype:
        return leaf
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating):
        leaf = leaf.real
    return leaf.astype(dtype)
