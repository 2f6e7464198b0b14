"""A directory of checkpoints: one subdirectory per step, named by the step's decimal number.

Order is by step, never by a clock. A name that is no plain number (an unfinished save, a note)
is no checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError, CheckpointError
from flaxtrain.text import kind_of

__all__ = [
    "CHECKPOINTS",
    "check_path",
    "clean_up",
    "latest",
    "step_path",
    "steps",
    "unfinished_name",
]

CHECKPOINTS = "checkpoints"
"""The directory of checkpoints in the workdir of a run."""

_STEP = re.compile("[0-9]+")
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<stage>partial|replaced)-[0-9a-f]+")


def check_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Returns `path` as an absolute `Path`, without `~`, `..` and symbolic links.

    Raises:
        ArgumentTypeError: it is no path.
        ArgumentError: it is empty or holds a NUL.

    Example:
        >>> str(check_path("/tmp/run/../other"))
        '/tmp/other'
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ArgumentTypeError(
            f"{name}={path!r} is {kind_of(path)}, not a path",
            fix="pass a string or a pathlib.Path",
        )
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ArgumentError(
            f"{name}={text!r} is not a path", fix="pass the path of a directory"
        )
    return Path(text).expanduser().resolve()


def step_path(directory: str | os.PathLike[str], step: int) -> Path:
    """Returns the path of the checkpoint of one step.

    Raises:
        ArgumentError: `step` is negative.

    Example:
        >>> str(step_path("/tmp/run", 500))
        '/tmp/run/500'
    """
    check_integer("step", step, minimum=0, where="step_path(directory, step)")
    return check_path(directory, "directory") / str(int(step))


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps that have a finished checkpoint, in ascending order.

    A directory that does not exist has none.

    Raises:
        CheckpointError: the directory can't be read.
    """
    directory = check_path(directory, "directory")
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"can't list checkpoints: {error}", where=str(directory)
        ) from None
    # "007" is not a name that step_path makes.
    return sorted(
        int(name) for name in names if _STEP.fullmatch(name) and str(int(name)) == name
    )


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """Returns the path of the checkpoint with the highest step, or None if there is none."""
    found = steps(directory)
    return step_path(directory, found[-1]) if found else None


def unfinished_name(name: str, stage: str, token: str) -> str:
    """Returns the hidden name under which a checkpoint is written or replaced.

    Example:
        >>> unfinished_name("500", "partial", "0a1b")
        '.500.partial-0a1b'
    """
    return f".{name}.{stage}-{token}"


def clean_up(directory: str | os.PathLike[str]) -> list[Path]:
    """Removes what interrupted saves left behind, and undoes interrupted replacements.

    Call it before a run starts writing, and only while no other process saves there.

    Returns:
        The paths that were removed or moved back into place.
    """
    directory = check_path(directory, "directory")
    touched = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        match = _UNFINISHED.fullmatch(entry.name)
        if match is None or entry.is_symlink() or not entry.is_dir():
            continue
        target = directory / match["name"]
        if match["stage"] == "replaced" and not target.exists():
            entry.rename(target)
        else:
            shutil.rmtree(entry)
        touched.append(entry)
    return touched
