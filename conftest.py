"""Settings that hold for every test and doctest; the first ones before jax is imported.

- `JAX_PLATFORMS=cpu`: numbers are judged on one backend.
- `NPROC=2`: the size of XLA's thread pool, which decides how reductions are split; bitwise
  comparisons are between runs with the same value. Both can be overridden from outside.
- A compilation cache that lives as long as the session: many tests train the same small models.
  The workers of pytest-xdist and the processes that tests start inherit it. Compilations are
  counted where functions are traced, which the cache does not change.
- XLA spends little on optimizing: nearly all time goes into compiling programs that run for
  milliseconds. What is compared with optax bit for bit, or looked at as a compiled program, is
  compiled as a user's is (`AS_IT_COMES` in tests/runs.py), and so is everything with
  `XLA_FLAGS=` set from outside, as `make slow` does.
- With `DEVICES=8` the process has eight CPU devices, for tests/devices, which are left out
  otherwise: the device count is part of what bitwise comparisons hold for.
- A rank promotion is an error: `[batch] - [batch, 1]` is a bug that runs.
- jaxtyping and beartype, where installed, check every annotation of flaxtrain on every call.

float64 is switched on by the tests that need it, with `jax.enable_x64(True)` as a context.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
DEVICES = os.environ.get("DEVICES", "")
# With fewer threads than devices, these wait for one another.
os.environ.setdefault("NPROC", DEVICES or "2")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="flaxtrain-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# To compile one addition takes 50 ms, and to load it 2 ms.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Later versions have no second emitter of loops, and end the process at an unknown flag.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
if DEVICES:
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={DEVICES}"

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and no clock: a busy machine is no failure.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

# A script that needs scikit-learn, run by hand to make the embedded data set once more.
collect_ignore = ["tests/golden/make_digits.py"]
if not DEVICES:
    collect_ignore.append("tests/devices")

CHECKS_TYPES = all(importlib.util.find_spec(name) for name in ("jaxtyping", "beartype"))
if CHECKS_TYPES:
    import jaxtyping

    from tests.typechecker import install

    install("flaxtrain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses the name of a test that holds an address: it differs from process to process.

    The workers of pytest-xdist then refuse to start, by chance: where names are cut short the
    addresses are equal in most runs.
    """
    for item in items:
        if " at 0x" in item.name:
            raise pytest.UsageError(f"{item.nodeid}: an address in its name; give it `ids`")


def pytest_collection_finish() -> None:
    """Takes tests and modules, a million objects, out of what is searched for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Switches the checks of annotations off, for tests of our own errors about wrong types."""
    if not CHECKS_TYPES:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
