"""What a batch is made of: dicts and tuples of numpy arrays that share their leading axis.

Everything a data set yields passes through here once, on the host: torch and TensorFlow tensors
become numpy arrays, 64-bit numbers get the dtype that jax would give them anyway, and what
can't be a batch is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import BatchError, DataError
from flaxtrain.text import kind_of
from flaxtrain.tree import named_leaves, path_name
from flaxtrain.typing import HostTree

__all__ = []  # for the other modules of this room


@dataclass(frozen=True)
class Place:
    """Where a problem is found, and the class of error it is.

    Attributes:
        where: the place, as people name it: `epoch 0, batch 3`.
        error: the class to raise.
    """

    where: str
    error: type[DataError] = BatchError

    def problem(self, found: str, fix: str) -> DataError:
        """Builds (does not raise) the error.

        Example:
            >>> type(Place("batch 3").problem("no rows", "drop it")).__name__
            'BatchError'
        """
        return self.error(found, where=self.where, fix=fix)


_SINGLE = (
    "a batch needs a leading batch axis: does the data set yield single examples? Batch them"
)
_CONTAINERS = (Mapping, tuple, list)


def is_array(value: object) -> bool:
    """Whether `value` is an array or a tensor of any library, judged without importing any.

    Example:
        >>> is_array(np.zeros(3)), is_array([0.0, 0.0])
        (True, False)
    """
    return hasattr(value, "__array__") and not isinstance(value, np.ma.MaskedArray)


def as_arrays(tree: Any, place: Place) -> HostTree:
    """Returns the tree with numpy arrays at the leaves; arrays keep their memory and dtype.

    Lists of arrays become tuples (torch's `DataLoader` makes lists), other mappings dicts.

    Args:
        tree: a dict, tuple or list of arrays, nested as you like, or one array.
        place: for the message.

    Raises:
        DataError: a leaf is not an array of numbers, or has no batch axis.

    Example:
        >>> as_arrays({"x": jnp.ones((2, 3))}, Place("here"))["x"].shape
        (2, 3)
    """
    return _visit(tree, (), place)


def _visit(node: Any, path: tuple[str, ...], place: Place) -> HostTree:
    if isinstance(node, Mapping):
        _check_keys(node, path, place)
        return {key: _visit(child, (*path, key), place) for key, child in node.items()}
    if isinstance(node, (tuple, list)):
        children = [_visit_item(node, index, path, place) for index in range(len(node))]
        return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
    return _leaf(node, _name(path), place)


def _check_keys(node: Mapping[Any, Any], path: tuple[str, ...], place: Place) -> None:
    odd = [key for key in node if not isinstance(key, str)]
    if odd:
        raise place.problem(
            f"{_name(path)} has the key {odd[0]!r}, not a string", "name the entries"
        )


def _visit_item(node: Any, index: int, path: tuple[str, ...], place: Place) -> HostTree:
    item = node[index]
    if isinstance(node, list) and not isinstance(item, _CONTAINERS) and not is_array(item):
        raise place.problem(
            f"{_name(path)} is a list of {type(item).__name__}, not an array",
            "make it an array: np.asarray(...); text has to become numbers first",
        )
    return _visit(item, (*path, str(index)), place)


def _leaf(node: Any, name: str, place: Place) -> np.ndarray:
    if not is_array(node):
        scalar = isinstance(node, (bool, int, float, complex))
        raise place.problem(
            f"{name} is {kind_of(node)}, not an array",
            _SINGLE
            if scalar
            else "batches hold numpy or jax arrays: make it one, or leave it out",
        )
    try:
        array = np.asarray(node)
    except Exception as error:
        raise place.problem(
            f"{name} is {kind_of(node)} that numpy can't read: {error}",
            "yield numpy arrays, or tensors in host memory that need no gradient",
        ) from error
    if not _is_numeric(array.dtype):
        raise place.problem(
            f"{name} has dtype {array.dtype}, which jax can't hold",
            "turn it into numbers, or leave it out of the batch",
        )
    if array.ndim == 0:
        raise place.problem(f"{name} is a single number of shape ()", _SINGLE)
    return array


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    """Bool, integer, float and complex up to 64 bits a part, and jax's small floats."""
    if dtype.kind in "biufc":
        return dtype.itemsize <= (16 if dtype.kind == "c" else 8)
    return dtype.names is None and jnp.issubdtype(dtype, jnp.number)


def canonical(array: np.ndarray, name: str, place: Place) -> np.ndarray:
    """Returns the array in the dtype that jax will use: 32 bits unless x64 is enabled.

    Args:
        array: any numeric numpy array; returned itself when its dtype is right already.
        name: the leaf's name, for the message.
        place: for the message.

    Raises:
        DataError: a value does not fit; jax would wrap an integer around in silence.

    Example:
        >>> canonical(np.zeros(2), "x", Place("here")).dtype
        dtype('float32')
    """
    dtype = _jax_dtype(array.dtype)
    if array.dtype == dtype:
        return array
    if dtype.kind in "iu" and dtype.itemsize < array.dtype.itemsize and array.size:
        bounds = np.iinfo(dtype)
        fits = bounds.min <= int(array.min()) and int(array.max()) <= bounds.max
    else:
        fits = True
    try:
        with np.errstate(over="raise"):
            converted = array.astype(dtype)
    except FloatingPointError:
        fits, converted = False, array
    if not fits:
        raise place.problem(
            f"{name} holds {array.dtype} values that do not fit into {dtype}",
            "rescale them, or enable 64 bits: jax.config.update('jax_enable_x64', True)",
        )
    return converted


def count_rows(tree: HostTree, place: Place) -> int:
    """Returns the length of the leading axis, which all leaves must share.

    Raises:
        DataError: there is no leaf, or the leaves disagree.

    Example:
        >>> count_rows({"x": np.ones((5, 2)), "y": np.ones(5)}, Place("here"))
        5
    """
    leaves = jax.tree_util.tree_leaves(tree)
    if not leaves:
        raise place.problem("there is no array in it", "yield a dict or a tuple of arrays")
    rows = leaves[0].shape[0]
    if any(leaf.shape[0] != rows for leaf in leaves):
        listed = ", ".join(f"{name} has {leaf.shape[0]}" for name, leaf in named_leaves(tree))
        raise place.problem(
            f"the leading axes disagree: {listed}", "give every array one row per example"
        )
    return rows


def to_host(batch: Any, place: Place, *, copy: bool = False) -> HostTree:
    """Returns a batch as numpy arrays of the dtypes jax will use.

    Args:
        batch: what a data set yielded.
        place: for the message.
        copy: whether the arrays get memory of their own. On a CPU, jax reads aligned numpy
            memory in place, also after `device_put`: a source that fills one buffer again and
            again would change batches that are waiting or in use.

    Raises:
        DataError: it can't be a batch.

    Example:
        >>> to_host([np.zeros((2, 3)), np.zeros(2, int)], Place("here"))[1].dtype
        dtype('int32')
    """
    arrays = as_arrays(batch, place)
    host = canonical_tree(arrays, place)
    if not copy:
        return host
    return jax.tree_util.tree_map(
        lambda new, old: new.copy() if new is old else new, host, arrays
    )


def canonical_tree(arrays: HostTree, place: Place) -> HostTree:
    """Returns a tree of numpy arrays with every leaf `canonical`.

    Raises:
        DataError: a value does not fit.

    Example:
        >>> canonical_tree((np.zeros(2), np.zeros(2, "f4")), Place("here"))[0].dtype
        dtype('float32')
    """
    if all(leaf.dtype == _jax_dtype(leaf.dtype) for leaf in jax.tree_util.tree_leaves(arrays)):
        return arrays  # the usual case, once per batch: no names are made up
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: canonical(leaf, path_name(path) or "the batch", place), arrays
    )


def _jax_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The native dtype that jax uses, which depends on whether x64 is enabled."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype)).newbyteorder("=")


def _name(path: tuple[str, ...]) -> str:
    return path_name(path) or "the batch"
