"""The manifest: one JSON file that says what a checkpoint holds, and whether it is whole.

    {"format": "flaxtrain checkpoint", "schema": 1, "sha256": "...", "body": {
       "environment": {"jax": "0.10.2", ...},
       "leaves": {"params/Dense_0/kernel": {"kind": "array", "shape": [64, 10], ...}, ...},
       "files": {"d/8e4f...": {"bytes": 2610, "sha256": "..."}, ...},
       "meta": {...}}}

The digests find accidents: flipped bits, truncated and mixed-up files. They are no defence
against someone who rewrites the manifest as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flaxtrain.checkpoint.leaves import LeafRecord
from flaxtrain.errors import ArgumentTypeError, CheckpointError
from flaxtrain.text import kind_of

__all__ = [
    "FILE_NAME",
    "FileRecord",
    "Manifest",
    "check_json",
    "read_manifest",
    "write_manifest",
]

FILE_NAME = "manifest.json"
"""Name of the manifest in the directory of a checkpoint."""

_FORMAT, _SCHEMA = "flaxtrain checkpoint", 1
# About 300,000 leaves; a damaged or hostile file must not fill the memory.
_MAX_BYTES = 64 * 2**20
_OTHER = "use another checkpoint; this one was damaged after it was written"


@dataclass(frozen=True)
class FileRecord:
    """Length and sha256 of one file of the array store."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        leaves: by name, in the order of the saved tree.
        files: by path relative to the array store.
        environment: versions and settings under which it was written.
        meta: the caller's own JSON dict.
        schema: version of the manifest's layout.
    """

    leaves: Mapping[str, LeafRecord] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    schema: int = _SCHEMA


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest into `directory` and waits until it is on the disk."""
    body = {
        "environment": dict(manifest.environment),
        "leaves": {name: _lean(record) for name, record in manifest.leaves.items()},
        "files": {name: asdict(record) for name, record in manifest.files.items()},
        "meta": dict(manifest.meta),
    }
    content = {"format": _FORMAT, "schema": _SCHEMA, "sha256": _digest(body), "body": body}
    with open(directory / FILE_NAME, "x", encoding="ascii") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _lean(record: LeafRecord) -> dict[str, Any]:
    fields = asdict(record) | {"shape": list(record.shape)}
    if record.kind != "array" and record.kind != "key":
        del fields["shape"]
    return {name: value for name, value in fields.items() if value != ""}


def _digest(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads and verifies the manifest of the checkpoint at `path`.

    Raises:
        CheckpointError: there is no checkpoint at `path`, its manifest is damaged, or a later
            version of flaxtrain wrote it.
    """
    file = Path(path) / FILE_NAME
    content = _read_json(file)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise _damaged(file, "it does not say that it is a flaxtrain checkpoint")
    schema, body = content.get("schema"), content.get("body")
    if content.get("sha256") != _digest(body):
        raise _damaged(file, "its text is not what was written")
    if schema != _SCHEMA or not isinstance(body, dict):
        raise CheckpointError(
            f"the checkpoint has layout {schema!r}, this version reads layout {_SCHEMA}",
            where=str(file),
            fix="read it with the version of flaxtrain that wrote it",
        )
    try:
        leaves = {
            name: LeafRecord(**fields | {"shape": tuple(fields.get("shape", ()))})
            for name, fields in body["leaves"].items()
        }
        files = {name: FileRecord(**fields) for name, fields in body["files"].items()}
        return Manifest(leaves, files, body["environment"], body["meta"], schema)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"an entry is missing or misshapen ({error})") from None


def _read_json(file: Path) -> Any:
    if not file.parent.is_dir():
        raise CheckpointError(
            "there is no checkpoint",
            where=str(file.parent),
            fix="check the path; a checkpoint is a directory",
        )
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _damaged(file, f"it is larger than {_MAX_BYTES} bytes")
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"the directory has no {FILE_NAME}",
            where=str(file.parent),
            fix="pass the directory of one checkpoint, such as WORKDIR/checkpoints/500",
        ) from None
    except OSError as error:
        raise CheckpointError(f"can't read the manifest: {error}", where=str(file)) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it is no JSON ({str(error)[:100]})") from None


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"the manifest is damaged: {reason}", where=str(file), fix=_OTHER)


def check_json(value: Any, where: str) -> None:
    """Refuses what JSON would not give back exactly: numpy numbers, tuples, NaN, integer keys.

    Raises:
        ArgumentTypeError: with the place of the first such value.

    Example:
        >>> check_json({"epoch": 3, "best": {"loss": 0.25}, "names": ["a", None]}, "meta")
        >>> check_json({"best": {"loss": (1, 2)}}, "meta")
        Traceback (most recent call last):
        ...
        flaxtrain.errors.ArgumentTypeError: a tuple can't be written as JSON
          where: meta['best']['loss']
          fix:   use dicts with string keys, lists, strings, finite numbers, booleans and None
    """
    found = None
    if isinstance(value, dict):
        for key, child in value.items():
            if type(key) is not str:
                found = f"the key {key!r}"
                break
            check_json(child, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, child in enumerate(value):
            check_json(child, f"{where}[{index}]")
    elif type(value) is float:
        # The two infinities and NaN are no JSON.
        found = None if value - value == 0 else f"the number {value}"
    elif value is not None and type(value) not in (bool, int, str):
        found = kind_of(value)
    if found:
        raise ArgumentTypeError(
            f"{found} can't be written as JSON",
            where=where,
            fix="use dicts with string keys, lists, strings, finite numbers, booleans and None",
        )
