"""Bytes of a tree; what Optax has as well is in `test_against_optax.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain import tree

ARRAYS = {
    "a": jnp.ones((3, 2), jnp.bfloat16),
    "b": [np.ones(5, "float64"), jnp.zeros((0, 7)), None],
    "key": jax.random.split(jax.random.key(0), 3),
}


def test_the_bytes_are_those_of_the_buffers_and_of_shapes_the_same() -> None:
    assert tree.nbytes(ARRAYS) == 3 * 2 * 2 + 5 * 8 + 3 * 2 * 4
    arrays = [leaf for leaf in jax.tree.leaves(ARRAYS) if isinstance(leaf, jax.Array)]
    assert tree.nbytes(arrays) == sum(leaf.nbytes for leaf in arrays)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in arrays]
    assert tree.nbytes(shapes) == tree.nbytes(arrays)


def test_numbers_take_what_numpy_takes_for_them_and_nothing_takes_nothing() -> None:
    assert (tree.nbytes({"a": 1.5, "b": True}), tree.nbytes({})) == (8 + 1, 0)
