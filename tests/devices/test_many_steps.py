"""Hundreds of steps on eight CPU devices end well: never too many of them are in flight.

XLA's collectives on a CPU end the process when devices wait for one another too long, which
happens when steps are dispatched without bound. Each run is a process of its own, with the
flags that a user has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, TIMES = 200, 20
SCRIPT = f"""
import sys
import jax
import flaxtrain as ft
from tests.devices.runs import LAYOUTS, Net, data
assert jax.device_count() == 8
spec = ft.OptSpec("adamw", learning_rate=1e-3, clip_norm=1.0, ema=0.9)
trainer = ft.Trainer(Net(), spec, log_every=50, verbose=False, **LAYOUTS[sys.argv[1]])
examples = data(480, dtype="float32")
result = trainer.fit(examples, steps={STEPS}, batch_size=48, eval_ds=examples, eval_every=50)
print("done", int(result.state.step), len(result.history.val))
"""
OURS = ("NPROC", "DEVICES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")


def ends_well(name: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in a fresh process, without what `conftest.py` sets for tests."""
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_two_hundred_steps_end_well() -> None:
    found = ends_well("replicated")
    assert found.stdout == f"done {STEPS} 4\n", found.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replicated", "data and fsdp", "pmap"])
def test_two_hundred_steps_end_well_twenty_times_of_twenty(name: str) -> None:
    runs = [ends_well(name) for _ in range(TIMES)]
    bad = [run.stderr[-2000:] for run in runs if run.stdout != f"done {STEPS} 4\n"]
    assert not bad, f"{len(bad)} of {TIMES}: {bad[0]}"
