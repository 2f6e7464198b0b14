"""Saving and restoring states; the only module that knows Orbax.

A checkpoint is a directory with a `manifest.json` (see `flaxtrain.checkpoint.manifest`) and the
arrays of the named tree in `arrays/`, which Orbax's own `PyTreeCheckpointer` reads too. It is
written beside its place under a hidden name and moved there by one rename: what has the
checkpoint's name is whole.

Orbax is handed nested dicts of numpy arrays only. All that it takes amiss (arrays without
elements, keys with dots, numpy numbers, other shapes when restoring) is dealt with before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from flaxtrain.checkpoint.compare import check_fits
from flaxtrain.checkpoint.differences import environment
from flaxtrain.checkpoint.leaves import LeafRecord, decode, encode, place
from flaxtrain.checkpoint.manifest import (
    FileRecord,
    Manifest,
    check_json,
    read_manifest,
    write_manifest,
)
from flaxtrain.checkpoint.named import leaf_name, name_keys, named_nodes
from flaxtrain.checkpoint.steps import check_path, unfinished_name
from flaxtrain.errors import ArgumentTypeError, CheckpointError
from flaxtrain.tree import key_of, unflatten
from flaxtrain.typing import PyTree

__all__ = ["read_meta", "restore", "save"]

_ARRAYS = "arrays"


def save(
    path: str | os.PathLike[str],
    state: PyTree,
    *,
    meta: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a state to the directory `path` and returns when it is on the disk.

    Args:
        path: the checkpoint's directory; its parents are made as needed.
        state: any pytree of arrays, PRNG keys and numbers. Static fields are not stored.
        meta: a JSON dict to keep beside it, read back by `read_meta`.
        overwrite: replace a checkpoint that is there already. A process killed between the two
            renames leaves the old one under a hidden name, which `clean_up` moves back.

    Returns:
        The absolute path.

    Raises:
        CheckpointError: `path` exists, a leaf can't be stored, or writing failed (disk full, no
            permission); nothing is left behind then.
        ArgumentTypeError: `meta` is not plain JSON.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> directory = tempfile.mkdtemp()
        >>> path = save(f"{directory}/500", {"w": jnp.arange(2.0)}, meta={"epoch": 3})
        >>> restore(path, like={"w": jnp.zeros(2)})
        {'w': Array([0., 1.], dtype=float32)}
        >>> read_meta(path)
        {'epoch': 3}
    """
    target = check_path(path)
    if meta is not None and not isinstance(meta, Mapping):
        raise ArgumentTypeError(
            f"meta is a {type(meta).__name__}", where="save", fix="pass a dict"
        )
    meta = dict(meta or {})
    check_json(meta, "meta")
    if jax.process_count() > 1:
        raise CheckpointError(
            f"saving from {jax.process_count()} processes at once is not supported",
            where=str(target),
        )
    if target.exists() and not (overwrite and target.is_dir()):
        raise _exists(target)
    records, arrays = _encode(state)
    token = secrets.token_hex(8)
    partial = target.with_name(unfinished_name(target.name, "partial", token))
    try:
        partial.mkdir(parents=True)
        files = _write_arrays(partial / _ARRAYS, arrays)
        write_manifest(partial, Manifest(records, files, environment(), meta))
        _publish(partial, target, token if overwrite else None)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint could not be written: {_first_line(error)}",
            where=str(target),
            fix="free space or change permissions; earlier checkpoints are untouched",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _first_line(error: Exception) -> str:
    """Orbax and tensorstore describe a full disk in paragraphs; the first line says it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _exists(target: Path) -> CheckpointError:
    return CheckpointError(
        "there is something at this path already",
        where=str(target),
        fix="choose another path, or pass overwrite=True to replace a checkpoint",
    )


def _encode(state: PyTree) -> tuple[dict[str, LeafRecord], dict[str, np.ndarray]]:
    records: dict[str, LeafRecord] = {}
    arrays: dict[str, np.ndarray] = {}
    for path, node in named_nodes(state):
        name = leaf_name(path)
        if node is None or (isinstance(node, dict) and not node):
            records[name] = LeafRecord("none" if node is None else "empty")
            continue
        records[name], array = encode(node, where=name)
        if array is not None:
            arrays[name] = array
    return records, arrays


def _write_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> dict[str, FileRecord]:
    if not arrays:  # Orbax refuses an empty tree
        return {}
    tree = unflatten({_stored_path(name): array for name, array in arrays.items()})
    with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory, tree)
    # tensorstore syncs its data files itself; what Orbax writes in Python lies at the top.
    return {
        str(file.relative_to(directory)): _file_record(file, sync=file.parent == directory)
        for file in _files(directory)
    }


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


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _file_record(path: Path, *, sync: bool = False) -> FileRecord:
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return FileRecord(file.tell(), checksum)


def _publish(partial: Path, target: Path, replace_token: str | None) -> None:
    """Moves a checkpoint into place; a rename never replaces a directory that has content."""
    if replace_token is not None and target.exists():
        old = target.with_name(unfinished_name(target.name, "replaced", replace_token))
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        try:
            partial.rename(target)
        except OSError:
            if target.exists():
                raise _exists(target) from None
            raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the `meta` dict that a checkpoint was saved with.

    Raises:
        CheckpointError: there is no checkpoint, or its manifest is damaged.
    """
    return dict(read_manifest(check_path(path)).meta)


def restore(path: str | os.PathLike[str], like: PyTree | None = None) -> PyTree:
    """Reads a checkpoint, after making sure that it is whole and that it fits.

    Args:
        path: the checkpoint's directory.
        like: a state of the same structure, shapes and dtypes, of arrays or
            `jax.ShapeDtypeStruct`s. Each leaf comes back as the same kind of object on the same
            devices; static fields are `like`'s. Without it, nested dicts of numpy arrays.

    Returns:
        A tree of `like`'s structure; nothing is ever cast or left out.

    Raises:
        CheckpointError: there is no checkpoint; a file is missing, truncated or changed (the
            files and the leaves in them are named); or the tree differs from `like`, with every
            missing or extra leaf and every other shape or dtype listed.
    """
    target = check_path(path)
    manifest = read_manifest(target)
    if like is not None:
        check_fits(manifest.leaves, like, where=str(target))
    _check_files(target, manifest)
    values = _decode(manifest, _read_arrays(target, manifest))
    if like is None:
        table = {name_keys(name): value for name, value in values.items()}
        return table[()] if () in table else unflatten(table)
    entries, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [leaf_name(tuple(map(key_of, entry))) for entry, _ in entries]
    leaves = [place(values[name], leaf, where=name) for name, (_, leaf) in zip(names, entries)]
    return jax.tree.unflatten(structure, leaves)


def _read_arrays(target: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    paths = {
        name: _stored_path(name) for name, record in manifest.leaves.items() if record.is_stored
    }
    if not paths:
        return {}
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = unflatten(dict.fromkeys(paths.values(), as_numpy))
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(target / _ARRAYS, restore_args=wanted)
    except Exception as error:
        raise CheckpointError(
            f"the files are as they were written, but can't be read: {_first_line(error)}",
            where=str(target / _ARRAYS),
            fix="restore with the version of orbax-checkpoint that read_manifest(path) tells",
        ) from None
    return {name: _at(tree, path) for name, path in paths.items()}


def _at(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return tree


def _decode(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: decode(record, arrays.get(name), where=name)
        for name, record in manifest.leaves.items()
    }


def _check_files(target: Path, manifest: Manifest) -> None:
    """Refuses damaged files before any of them reaches the array store's own parsers."""
    damage = []
    for name, record in manifest.files.items():
        file = target / _ARRAYS / name
        if not file.is_file():
            damage.append(f"{name} is missing")
        elif file.stat().st_size != record.bytes:
            damage.append(f"{name} has {file.stat().st_size} bytes instead of {record.bytes}")
        elif _file_record(file) != record:
            damage.append(f"{name} has changed")
    if damage:
        found = "; ".join(damage[:5])
        raise CheckpointError(
            f"the checkpoint is damaged: {found}{_damaged_leaves(target / _ARRAYS, manifest)}",
            where=str(target / _ARRAYS),
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
    more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    return f"; leaves affected: {', '.join(damaged[:5])}{more}" if damaged else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from logging a failure on its own; it is raised, and told once, by us."""

    def from_others(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(from_others)
    try:
        yield
    finally:
        logger.removeFilter(from_others)
