"""One batch in a file: an `.npz` that numpy reads, with the structure of the batch beside it.

Nothing in it executes: arrays are plain numbers, the structure is JSON.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentTypeError, DataError
from flaxtrain.text import kind_of
from flaxtrain.tree import path_name
from flaxtrain.typing import ArrayLike, Batch, HostTree

__all__ = ["load_batch", "save_batch"]

_STRUCTURE, _MASK = "__structure__", "__mask__"


def save_batch(path: str | Path, batch: Batch, mask: ArrayLike | None = None) -> Path:
    """Writes a batch to a file.

    Args:
        path: of the file; what is there is replaced.
        batch: dicts with texts as keys, tuples, lists and None, nested as you like, of arrays
            of numbers or bools.
        mask: bool `[rows]`, False for padding rows; None for a full batch.

    Returns:
        The path.

    Raises:
        DataError: an entry is something else, such as a text, a typed key or a named tuple,
            whose class a file can't bring back; or there is no array. Nothing is written then.
        ArgumentTypeError: `path` is none.
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "batch.npz"
        >>> batch = {"x": np.array([1.0, np.nan]), "y": (np.arange(2),)}
        >>> loaded, mask = load_batch(save_batch(path, batch))
        >>> loaded, mask
        ({'x': array([ 1., nan]), 'y': (array([0, 1]),)}, None)
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _described(batch, (), arrays)
    if not arrays:
        raise _refused((), "holds no array")
    if mask is not None:
        arrays[_MASK] = np.asarray(mask)
    text = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    path = _as_path(path, where="save_batch")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, array in {_STRUCTURE: text, **arrays}.items():
                # Not by np.savez, which takes the names for its own arguments.
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _as_path(path: Any, *, where: str) -> Path:
    if not isinstance(path, (str, Path)):
        raise ArgumentTypeError(
            f"path={path!r} is {kind_of(path)}, not a path",
            where=where,
            fix="pass a string or a pathlib.Path",
        )
    return Path(path).expanduser()


def _described(node: Any, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """Returns the structure as JSON data, and collects the arrays by name."""
    if node is None:
        return {"none": True}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise _refused(path, f"has the key {key!r}, {kind_of(key)}")
        children = {k: _described(child, (*path, k), arrays) for k, child in node.items()}
        return {"dict": children}
    if type(node) in (tuple, list):
        found = [_described(child, (*path, str(i)), arrays) for i, child in enumerate(node)]
        return {type(node).__name__: found}
    array, name = _array(node, path), path_name(path) or "batch"
    while name in (*arrays, _STRUCTURE, _MASK):
        name += "_"
    dtype = array.dtype.name
    # What numpy has no type for (bfloat16, float8) is kept as its bytes.
    arrays[name] = array if array.dtype.kind in "biufc" else array.view(f"u{array.itemsize}")
    return {"array": name, "dtype": dtype}


def _array(leaf: Any, path: tuple[str, ...]) -> np.ndarray:
    """Returns a leaf as numpy's, if it is an array of numbers or bools."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise _refused(path, "is a typed key")
    plain = isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))
    if not plain:
        raise _refused(path, f"is {kind_of(leaf)}")
    array = np.asarray(leaf)
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, np.number)):
        raise _refused(path, f"has dtype {array.dtype}")
    return array


def _refused(path: tuple[str, ...], what: str) -> DataError:
    return DataError(
        f"{path_name(path) or 'the batch'} {what}, which no file of a batch can hold",
        where="save_batch",
        fix="pass dicts with texts as keys, tuples and lists, of arrays of numbers or bools",
    )


def load_batch(path: str | Path) -> tuple[HostTree, np.ndarray | None]:
    """Reads what `save_batch` has written, such as the batch of a step that was rejected.

    Args:
        path: of the file.

    Returns:
        The batch, of numpy arrays, and the mask of its real rows, or None.

    Raises:
        DataError: there is no such file, or it is none of these.
        ArgumentTypeError: `path` is none.
    """
    path = _as_path(path, where="load_batch")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): _read(archive, name) for name in archive.namelist()
            }
        structure = json.loads(arrays.pop(_STRUCTURE).tobytes())
        return _rebuilt(structure, arrays), arrays.get(_MASK)
    except Exception as error:
        lacks = f"it has no entry {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"the batch can't be read: {type(error).__name__}: {lacks}",
            where=str(path),
            fix="pass the path of a file that save_batch, or a run that ended, has written",
        ) from error


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _rebuilt(structure: Any, arrays: dict[str, np.ndarray]) -> Any:
    if "dict" in structure:
        return {key: _rebuilt(child, arrays) for key, child in structure["dict"].items()}
    if "none" in structure:
        return None
    for kind in (tuple, list):
        if kind.__name__ in structure:
            return kind(_rebuilt(child, arrays) for child in structure[kind.__name__])
    return arrays[structure["array"]].view(jnp.dtype(structure["dtype"]))
