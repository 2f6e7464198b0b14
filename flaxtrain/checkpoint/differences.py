"""What the bits of a run depend on besides its inputs, and how two such environments differ.

A resumed run is bitwise equal to an uninterrupted one at fixed versions, XLA flags, number of
threads and devices. A checkpoint records them, so that a resume can say what has changed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax

from flaxtrain.checkpoint.manifest import Manifest, read_manifest
from flaxtrain.version import __version__

__all__ = ["environment", "environment_differences"]

_LIBRARIES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}
_VARIABLES = ("XLA_FLAGS", "NPROC")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def environment() -> dict[str, Any]:
    """Returns the versions, settings and devices that decide the bits of a result.

    Of the process environment it reads `XLA_FLAGS` and `NPROC` only.

    Returns:
        A flat JSON dict; an unset variable is None.

    Example:
        >>> found = environment()
        >>> found["device_count"] == jax.device_count(), sorted(found)[:3]
        (True, ['NPROC', 'XLA_FLAGS', 'cpu_count'])
    """
    return {
        "flaxtrain": __version__,
        "python": platform.python_version(),
        **_versions(),
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        **{name: os.environ.get(name) for name in _VARIABLES},
        **{name: _setting(name) for name in _SETTINGS},
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(package) for name, package in _LIBRARIES.items()}


def _setting(name: str) -> Any:
    value = getattr(jax.config, name, None)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def environment_differences(
    checkpoint: Manifest | str | os.PathLike[str], current: Mapping[str, Any] | None = None
) -> list[str]:
    """Returns one line for each thing that differs from when a checkpoint was written.

    Args:
        checkpoint: a manifest, or the path of a checkpoint.
        current: what to compare with; default `environment()`.

    Returns:
        Lines such as `jax: 0.10.2 when saved, 0.12.0 now`; empty if bits can be expected to be
        the same. The number of cores counts only where `NPROC` doesn't fix the threads.

    Raises:
        CheckpointError: a path is given and there is no sound checkpoint.

    Example:
        >>> saved = Manifest(environment={"jax": "0.10.2", "NPROC": "2"})
        >>> environment_differences(saved, {"jax": "0.12.0", "NPROC": "2"})
        ['jax: 0.10.2 when saved, 0.12.0 now']
    """
    manifest = checkpoint if isinstance(checkpoint, Manifest) else read_manifest(checkpoint)
    saved, now = manifest.environment, environment() if current is None else current
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if saved.get("NPROC") and saved.get("NPROC") == now.get("NPROC"):
        names = [name for name in names if name != "cpu_count"]
    return [f"{name}: {saved.get(name)} when saved, {now.get(name)} now" for name in names]
