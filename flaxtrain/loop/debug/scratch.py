"""A place for what a rehearsal writes, gone when it is over."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from flaxtrain.loop.several_processes import agree_on_the_source
from flaxtrain.parallel import is_writer
from flaxtrain.parallel.processes import decided

__all__ = ["scratch"]

_SECONDS = 300.0
"""How long the processes wait for one another: for the directory, and before it goes."""


@contextmanager
def scratch(workdir: Path | None) -> Iterator[Path]:
    """Makes a temporary directory; directories that have to be made for it go, too, if empty.

    It is in the workdir, if there is one: whether that can be written to is part of what a
    rehearsal finds out. Of several processes all have the one that process 0 makes there.

    Args:
        workdir: the directory of the run, or None.

    Raises:
        ProcessError: only some of the processes have a workdir.
    """
    agree_on_the_source(workdir, None)
    if workdir is None:
        with _made(None) as directory:
            yield directory
        return
    with _made(workdir) if is_writer() else nullcontext(workdir) as made:
        where = "fit(debug='smoke')"
        name = decided(made.name, lambda names: names[0], where=where, timeout=_SECONDS)
        directory = workdir / name
        # Not there yet in a workdir that this process does not share with process 0.
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        decided(None, len, where=where, timeout=_SECONDS)
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _made(workdir: Path | None) -> Iterator[Path]:
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
