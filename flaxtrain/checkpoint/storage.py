"""Saving and restoring states.

A checkpoint is a directory with a `manifest.json` (see `flaxtrain.checkpoint.manifest`) and the
arrays of the named tree in `arrays/`, which Orbax's own `PyTreeCheckpointer` reads too. It is
written beside its place under a hidden name and moved there by one rename: what has the
checkpoint's name is whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxtrain.checkpoint.compare import check_fits, kept_leaves
from flaxtrain.checkpoint.differences import environment
from flaxtrain.checkpoint.leaves import LeafRecord, decode, encode, place
from flaxtrain.checkpoint.manifest import Manifest, check_json, read_manifest, write_manifest
from flaxtrain.checkpoint.named import leaf_name, name_keys, named_nodes
from flaxtrain.checkpoint.steps import check_path, unfinished_name
from flaxtrain.checkpoint.stored_arrays import (
    ARRAYS,
    check_files,
    first_line,
    read_arrays,
    write_arrays,
)
from flaxtrain.errors import ArgumentTypeError, CheckpointError
from flaxtrain.text import kind_of
from flaxtrain.tree import key_of, unflatten
from flaxtrain.typing import PyTree

__all__ = ["FROM_SPEC", "IF_PRESENT", "read_meta", "restore", "save"]

FROM_SPEC = ("opt_state/hyperparams",)
"""What a training state has from its spec; no part of what was learnt."""

IF_PRESENT = (
    "opt_state/learning_rates",
    "counters/spikes",
    "spikes/values",
    "spikes/count",
)
"""What a training state has for each group, and a checkpoint with other groups has not; and
what a state without a spike rule has not: the number of spikes among the counters, and the
values that the rule compares with."""


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
        raise ArgumentTypeError(f"meta is {kind_of(meta)}", where="save", fix="pass a dict")
    meta = dict(meta or {})
    check_json(meta, "meta")
    if jax.process_index() != 0:
        raise CheckpointError(
            f"process {jax.process_index()} is not the one that writes",
            where=str(target),
            fix="save where ft.parallel.is_writer(), and what ft.parallel.gathered() has made "
            "of the state in every process",
        )
    if target.exists() and not (overwrite and target.is_dir()):
        raise _exists(target)
    records, arrays = _encode(state)
    token = secrets.token_hex(8)
    partial = target.with_name(unfinished_name(target.name, "partial", token))
    try:
        partial.mkdir(parents=True)
        files = write_arrays(partial / ARRAYS, arrays)
        write_manifest(partial, Manifest(records, files, environment(), meta))
        _publish(partial, target, token if overwrite else None)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint could not be written: {first_line(error)}",
            where=str(target),
            fix="free space or change permissions; earlier checkpoints are untouched",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


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


def restore(
    path: str | os.PathLike[str],
    like: PyTree | None = None,
    *,
    from_like: Collection[str] = FROM_SPEC,
    if_present: Collection[str] = IF_PRESENT,
) -> PyTree:
    """Reads a checkpoint, after making sure that it is whole and that it fits.

    By default a training state whose spec has other groups fits, as long as the optimizers'
    slots are the same: hyperparameters are those of the state's own spec, and a group that the
    checkpoint doesn't know has the learning rate of `like`. With `from_like=(), if_present=()`
    everything comes from the checkpoint, hyperparameters that were edited included.

    Args:
        path: the checkpoint's directory.
        like: a state of the same structure, shapes and dtypes, of arrays or
            `jax.ShapeDtypeStruct`s. Each leaf comes back as the same kind of object on the same
            devices; static fields are `like`'s. Without it, nested dicts of numpy arrays.
        from_like: names of leaves, or of what contains them, such as
            `"opt_state/hyperparams"`: they are copies of `like`'s, whatever the checkpoint has.
            Where `like` has a shape only, they come from the checkpoint.
        if_present: names likewise: these leaves come from the checkpoint where it has them,
            and are copies of `like`'s otherwise.

    Returns:
        A tree of `like`'s structure; nothing is ever cast, and nothing but what the two
        arguments allow is left out.

    Raises:
        CheckpointError: there is no checkpoint; a file is missing, truncated or changed (the
            files and the leaves in them are named); or the tree differs from `like`, with every
            missing or extra leaf and every other shape or dtype listed.
        ArgumentTypeError: `from_like` or `if_present` is no collection of names.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> path = save(f"{tempfile.mkdtemp()}/1", {"w": jnp.ones(1), "a": {"x": 1, "y": 2}})
        >>> like = {"w": jnp.zeros(1), "a": {"x": 10, "z": 30}}
        >>> restore(path, like, if_present=["a"])
        {'a': {'x': 1, 'z': 30}, 'w': Array([1.], dtype=float32)}
    """
    target = check_path(path)
    _check_names(from_like=from_like, if_present=if_present)
    manifest = read_manifest(target)
    kept: dict[str, Any] = {}
    if like is not None:
        kept = kept_leaves(manifest.leaves, like, from_like, if_present)
        free = (*from_like, *if_present)
        check_fits(manifest.leaves, like, where=str(target), kept=kept, free=free)
    check_files(target, manifest)
    values = _decode(manifest, read_arrays(target, manifest))
    if like is None:
        table = {name_keys(name): value for name, value in values.items()}
        return table[()] if () in table else unflatten(table)
    entries, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [leaf_name(tuple(map(key_of, entry))) for entry, _ in entries]
    leaves = [
        _copy(leaf) if name in kept else place(values[name], leaf, where=name)
        for name, (_, leaf) in zip(names, entries)
    ]
    return jax.tree.unflatten(structure, leaves)


def _check_names(**given: Any) -> None:
    for argument, names in given.items():
        several = isinstance(names, Collection) and not isinstance(names, str)
        if not several or not all(isinstance(name, str) for name in names):
            raise ArgumentTypeError(
                f"{argument}={names!r} is no collection of names",
                where="restore",
                fix=f'pass a tuple, such as {argument}=("opt_state/hyperparams",)',
            )


def _copy(leaf: Any) -> Any:
    """A copy, as `like` may be donated to a compiled function later."""
    return leaf.copy() if isinstance(leaf, (jax.Array, np.ndarray)) else leaf


def _decode(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: decode(record, arrays.get(name), where=name)
        for name, record in manifest.leaves.items()
    }
