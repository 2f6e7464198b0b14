"""The arrays of a checkpoint on the disk; the only module that knows Orbax.

Orbax is handed nested dicts of numpy arrays only. All that it takes amiss (arrays without
elements, keys with dots, numpy numbers, other shapes when restoring) is dealt with before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from flaxtrain.checkpoint.leaves import decode
from flaxtrain.checkpoint.manifest import FileRecord, Manifest
from flaxtrain.checkpoint.named import name_keys
from flaxtrain.errors import CheckpointError
from flaxtrain.text import listed
from flaxtrain.tree import unflatten
from flaxtrain.typing import PyTree

__all__ = [
    "ARRAYS",
    "check_files",
    "first_line",
    "quiet",
    "read_arrays",
    "read_plain",
    "write_arrays",
]

ARRAYS = "arrays"
"""The directory of the arrays in that of a checkpoint."""

_AS_NUMPY = ocp.RestoreArgs(restore_type=np.ndarray)


def _checkpointer() -> ocp.Checkpointer:
    """Returns what writes and reads for this process alone, however many others there are.

    Several processes otherwise wait for one another, and here one writes for all.
    """
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(this, {this}, f"flaxtrain_{this}")
    options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def write_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> dict[str, FileRecord]:
    """Writes arrays by the names of their leaves; returns size and checksum of every file."""
    if not arrays:  # Orbax refuses an empty tree
        return {}
    tree = unflatten({_stored_path(name): array for name, array in arrays.items()})
    with quiet(), _checkpointer() as checkpointer:
        checkpointer.save(directory, tree)
    # tensorstore syncs its data files itself; what Orbax writes in Python lies at the top.
    return {
        str(file.relative_to(directory)): _file_record(file, sync=file.parent == directory)
        for file in _files(directory)
    }


def read_arrays(target: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by the names of their leaves.

    Raises:
        CheckpointError: Orbax can't read them.
    """
    paths = {
        name: _stored_path(name) for name, record in manifest.leaves.items() if record.is_stored
    }
    if not paths:
        return {}
    wanted = unflatten(dict.fromkeys(paths.values(), _AS_NUMPY))
    try:
        with quiet(), _checkpointer() as checkpointer:
            tree = checkpointer.restore(target / ARRAYS, restore_args=wanted)
    except Exception as error:
        raise CheckpointError(
            f"the files are as they were written, but can't be read: {first_line(error)}",
            where=str(target / ARRAYS),
            fix="restore with the version of orbax-checkpoint that read_manifest(path) tells",
        ) from None
    return {name: _at(tree, path) for name, path in paths.items()}


def read_plain(directory: Path) -> PyTree:
    """Returns what Orbax itself saved to a directory: dicts and lists of numpy arrays.

    Raises:
        CheckpointError: Orbax can't read it.
    """
    try:
        with quiet(), _checkpointer() as checkpointer:
            tree = checkpointer.metadata(directory).item_metadata.tree
            wanted = jax.tree.map(lambda _: _AS_NUMPY, tree)
            return checkpointer.restore(directory, restore_args=wanted)
    except Exception as error:
        found = f"Orbax can't read what it saved here: {first_line(error)}"
        raise CheckpointError(found, where=str(directory), fix="use another copy") from None


def check_files(target: Path, manifest: Manifest) -> None:
    """Refuses damaged files before any of them reaches the array store's own parsers.

    Raises:
        CheckpointError: a file is missing, truncated or changed; the leaves in it are named.
    """
    damage = []
    for name, record in manifest.files.items():
        file = target / ARRAYS / name
        if not file.is_file():
            damage.append(f"{name} is missing")
        elif file.stat().st_size != record.bytes:
            damage.append(f"{name} has {file.stat().st_size} bytes instead of {record.bytes}")
        elif _file_record(file) != record:
            damage.append(f"{name} has changed")
    if damage:
        found = "; ".join(damage[:5])
        raise CheckpointError(
            f"the checkpoint is damaged: {found}{_damaged_leaves(target / ARRAYS, manifest)}",
            where=str(target / ARRAYS),
            fix="use another checkpoint; this one was damaged after it was written",
        )


def _damaged_leaves(directory: Path, manifest: Manifest) -> str:
    """Names the leaves that damaged files hold.

    They are read one at a time with Orbax's own array library: Orbax starts all reads at once,
    and when several fail, the others are reported on stderr long after.
    """
    damaged = []
    for name, record in manifest.leaves.items():
        if not record.is_stored:
            continue
        base = {"driver": "file", "path": f"{directory}{os.sep}"}
        inside = {"driver": "ocdbt", "base": base, "path": ".".join(_stored_path(name)) + "/"}
        try:
            array: Any = tensorstore.open({"driver": "zarr", "kvstore": inside}).result()
            # Before reading: a shape made of damaged bytes must not fill the memory.
            if tuple(array.shape)[: len(record.shape)] != record.shape:
                damaged.append(name)
            else:
                decode(record, np.asarray(array.read().result()), where=name)
        except Exception:
            damaged.append(name)
    return f"; leaves affected: {listed(damaged)}" if damaged else ""


def _stored_path(name: str) -> tuple[str, ...]:
    """Orbax joins keys with dots: `{"a.b": x}` and `{"a": {"b": y}}` would become one."""
    path = tuple(
        re.sub("[%.]", lambda hit: f"%{ord(hit[0]):02X}", key) for key in name_keys(name)
    )
    try:
        "".join(path).encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(
            "a key is no valid text", where=ascii(name), fix="rename it"
        ) from None
    return path or ("%",)


def _at(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return tree


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _file_record(path: Path, *, sync: bool = False) -> FileRecord:
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return FileRecord(file.tell(), checksum)


def first_line(error: Exception) -> str:
    """Orbax and tensorstore describe a full disk in paragraphs; the first line says it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax from logging a failure on its own; it is raised, and told once, by us."""

    def from_others(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(from_others)
    try:
        yield
    finally:
        logger.removeFilter(from_others)
