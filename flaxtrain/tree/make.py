"""New trees of the structure of another one: constants, batches, random numbers, keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.typing import ArrayLike, DTypeLike, PyTree

__all__ = [
    "batch_shape",
    "full_like",
    "ones_like",
    "random_like",
    "split_key_like",
    "unwrap_random_key_data",
    "zeros_like",
]


def zeros_like(tree: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Returns a tree of zeros; of another dtype, if one is given.

    Example:
        >>> print(zeros_like({"a": jnp.ones(2)})["a"])
        [0. 0.]
    """
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), tree)


def ones_like(tree: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Returns a tree of ones; of another dtype, if one is given.

    Example:
        >>> print(ones_like({"a": jnp.zeros(2)}, jnp.int32)["a"])
        [1 1]
    """
    return jax.tree.map(lambda leaf: jnp.ones_like(leaf, dtype=dtype), tree)


def full_like(tree: PyTree, fill_value: ArrayLike, dtype: DTypeLike | None = None) -> PyTree:
    """Returns a tree with one value everywhere; of another dtype, if one is given.

    Example:
        >>> print(full_like({"a": jnp.zeros(2)}, 3)["a"])
        [3. 3.]
    """
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, fill_value, dtype=dtype), tree)


def batch_shape(tree: PyTree, shape: tuple[int, ...] = ()) -> PyTree:
    """Returns the tree with axes of `shape` in front of every leaf, along which it repeats.

    Example:
        >>> batch_shape({"a": jnp.zeros(2)}, (3, 4))["a"].shape
        (3, 4, 2)
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), tree)


def split_key_like(rng_key: ArrayLike, target_tree: PyTree) -> PyTree:
    """Returns a tree with a PRNG key at every leaf, all different.

    Example:
        >>> keys = split_key_like(jax.random.key(0), {"a": 1.0, "b": 2.0})
        >>> bool(jnp.any(keys["a"] != keys["b"]))
        True
    """
    structure = jax.tree.structure(target_tree)
    keys = jax.random.split(rng_key, structure.num_leaves)
    return jax.tree.unflatten(structure, list(keys))


def random_like(
    rng_key: ArrayLike,
    target_tree: PyTree,
    sampler: Callable[..., Any] = jax.random.normal,
    dtype: DTypeLike | None = None,
) -> PyTree:
    """Returns a tree of random entries, with a key of its own for every leaf.

    Args:
        rng_key: a PRNG key.
        target_tree: gives shapes and dtypes; its leaves are arrays.
        sampler: `sampler(key, shape, dtype)`; one that has an argument `out_sharding` is given
            the sharding of the leaf.
        dtype: the dtype of all leaves. None: of each leaf its own, which the sampler must be
            able to make.

    Example:
        >>> noise = random_like(jax.random.key(0), {"a": jnp.zeros((2, 3))}, jax.random.uniform)
        >>> noise["a"].shape, bool(jnp.all((0 <= noise["a"]) & (noise["a"] < 1)))
        ((2, 3), True)
    """
    shards = "out_sharding" in inspect.signature(sampler).parameters

    def sample(leaf: Any, key: Any) -> Any:
        where = {"out_sharding": jax.typeof(leaf).sharding} if shards else {}
        return sampler(key, leaf.shape, dtype or leaf.dtype, **where)

    return jax.tree.map(sample, target_tree, split_key_like(rng_key, target_tree))


def unwrap_random_key_data(input_tree: PyTree) -> PyTree:
    """Returns the tree with the integers of every typed PRNG key in its place.

    Example:
        >>> print(unwrap_random_key_data({"key": jax.random.key(7), "a": 1})["key"])
        [0 7]
    """

    def unwrapped(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(unwrapped, input_tree)
