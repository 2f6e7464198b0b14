"""A place for what a rehearsal writes, gone when it is over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["scratch"]


@contextmanager
def scratch(workdir: Path | None) -> Iterator[Path]:
    """Makes a temporary directory; directories that have to be made for it go, too, if empty.

    It is in the workdir, if there is one: whether that can be written to is part of what a
    rehearsal finds out.

    Args:
        workdir: the directory of the run, or None.
    """
    missing: list[Path] = []
    if workdir is not None:
        missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=workdir, prefix="rehearsal-") as name:
            yield Path(name)
    finally:
        # Something that a hook has left in them stays, and so does the error that ends the run.
        with suppress(OSError):
            for path in missing:
                path.rmdir()
