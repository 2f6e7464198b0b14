"""Reading pretrained arrays from wherever they are: checkpoints of several kinds, and files.

What a file is follows from its first bytes, not from its name. Nothing in it is executed: a
pickle is refused, and so are object arrays of numpy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flaxtrain.checkpoint.array_files import (
    format_of,
    read_msgpack,
    read_npz,
    read_safetensors,
)
from flaxtrain.checkpoint.manifest import FILE_NAME
from flaxtrain.checkpoint.named import to_named
from flaxtrain.checkpoint.steps import CHECKPOINTS, check_path, latest
from flaxtrain.checkpoint.storage import restore
from flaxtrain.checkpoint.stored_arrays import read_plain
from flaxtrain.errors import CheckpointError
from flaxtrain.params import Restore, RestoreReport, apply_restore
from flaxtrain.text import listed
from flaxtrain.tree import flatten, unflatten
from flaxtrain.typing import PyTree

__all__ = ["find_source", "read_source", "restored_variables"]

_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "msgpack": read_msgpack,
    "npz": read_npz,
    "safetensors": read_safetensors,
}
# Where Orbax's manager keeps its only item.
_ONLY_ITEM = "default"
_FILES_OF_ORBAX = ("_METADATA", "manifest.ocdbt")


def restored_variables(restore: Restore, variables: PyTree) -> tuple[PyTree, RestoreReport]:
    """Reads a source and puts its arrays into freshly initialized variables.

    Args:
        restore: says where the arrays are, and how their paths, shapes and dtypes differ.
        variables: what `model.init` returned.

    Returns:
        The variables, of the same structure, and the report of what was loaded and what not.

    Raises:
        CheckpointError: the source can't be read.
        ParameterError: it does not fit; see `params.apply_restore`.

    Example:
        >>> import tempfile, numpy as np
        >>> from flaxtrain.params.restore import Restore
        >>> file = tempfile.mkdtemp() + "/pretrained.npz"
        >>> np.savez(file, **{"body/bias": np.ones(2, np.float32)})
        >>> fresh = {"params": {"body": {"bias": np.zeros(2, np.float32)}}}
        >>> variables, report = restored_variables(Restore(file), fresh)
        >>> variables["params"]["body"]["bias"], len(report.loaded)
        (array([1., 1.], dtype=float32), 1)
    """
    source = getattr(restore, "source", None)
    if not isinstance(source, str):
        return apply_restore(restore, source, variables)
    place = find_source(source)
    result, report = apply_restore(restore, _read(place), variables)
    return result, replace(report, source=str(place))


def read_source(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a source holds, as nested dicts of numpy arrays.

    Args:
        source: a path as `find_source` takes it, or nested mappings, whose leaves are returned
            as they are.

    Returns:
        The whole tree, with optimizer state and step where the source is a training state:
        `apply_restore` looks for the variables in it. Python numbers stay numbers, what is
        empty or None is left out, and positions in lists become keys. Names in `.npz` and
        `.safetensors` files are split at slashes, or at dots where no name has a slash.

    Raises:
        CheckpointError: there is nothing at the path, it is damaged, or it is something else,
            which is named as far as it is known.

    Example:
        >>> import tempfile, numpy as np
        >>> file = tempfile.mkdtemp() + "/pretrained.npz"
        >>> np.savez(file, **{"encoder.norm.scale": np.ones(2)})
        >>> read_source(file)
        {'encoder': {'norm': {'scale': array([1., 1.])}}}
    """
    return to_named(source) if isinstance(source, Mapping) else _read(find_source(source))


def find_source(path: str | os.PathLike[str]) -> Path:
    """Returns the file or the directory of one checkpoint that a path leads to.

    Args:
        path: a file (`.npz`, `.msgpack` of `flax.serialization`, `.safetensors`; the name does
            not matter); a checkpoint of ours; a directory that Orbax saved; a directory with
            one of these per step, or the workdir of a Trainer: then the last step is taken.

    Raises:
        CheckpointError: there is nothing, or nothing of these kinds.

    Example:
        >>> import tempfile
        >>> from flaxtrain.checkpoint import save
        >>> workdir = tempfile.mkdtemp()
        >>> path = save(f"{workdir}/checkpoints/20", {"params": {"w": 1.0}})
        >>> find_source(workdir) == path
        True
    """
    if "://" in str(path):
        raise CheckpointError(
            "only local files can be read", where=str(path), fix="copy it to this machine first"
        )
    place = check_path(path, "source")
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(
            "there is nothing at this path", where=str(place), fix="check the path"
        )
    if _is_checkpoint(place):
        return place
    if (place / CHECKPOINTS).is_dir() and latest(place / CHECKPOINTS) is not None:
        return find_source(place / CHECKPOINTS)
    inner = place / _ONLY_ITEM if (place / _ONLY_ITEM).is_dir() else latest(place)
    if inner is None:
        raise _no_checkpoint(place)
    return find_source(inner)


def _is_checkpoint(place: Path) -> bool:
    return any((place / name).is_file() for name in (FILE_NAME, *_FILES_OF_ORBAX))


def _no_checkpoint(place: Path) -> CheckpointError:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
    inside = [name for name in names if _is_checkpoint(place / name)]
    files = [name for name in names if Path(name).suffix[1:] in _READERS]
    held = f"holds {listed(names)}" if names else "is empty"
    hint = f"pass one of: {', '.join([*inside, *files][:5])}" if inside or files else None
    return CheckpointError(
        f"the directory is no checkpoint and has none: it {held}",
        where=str(place),
        fix=hint or "pass the directory of a checkpoint, a workdir, or a file of arrays",
    )


def _read(place: Path) -> dict[str, Any]:
    if place.is_file():
        tree = _READERS[format_of(place)](place)
    else:
        ours = (place / FILE_NAME).is_file()
        tree = to_named(restore(place) if ours else read_plain(place))
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"the checkpoint is a single {type(tree).__name__}, not a tree",
            where=str(place),
            fix="use one that was saved from nested dicts",
        )
    held = {path: leaf for path, leaf in flatten(tree).items() if leaf is not None}
    return unflatten(held)
