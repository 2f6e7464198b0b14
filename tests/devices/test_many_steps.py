"""Many steps on eight CPU devices: few of them in flight, by programs that are compiled once.

XLA's collectives on a CPU end the process when devices wait for one another too long, which
happens when steps are dispatched without bound.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import flaxtrain as ft
from flaxtrain.loop.in_flight import IN_FLIGHT
from flaxtrain.parallel.compile import Compiled
from flaxtrain.parallel.pmap import _Pmapped
from tests.devices.runs import LAYOUTS, Net, data
from tests.loop.dispatches import LONG_RUNS, slow_trainer, under_way

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


LOOPS = 4
"""So few that a step takes a few milliseconds: each device makes all of them."""


@pytest.mark.parametrize("name", ["replicated", pytest.param("pmap", marks=pytest.mark.slow)])
def test_the_host_is_ahead_of_slow_devices_by_so_many_steps_at_most(name: str) -> None:
    one = slow_trainer(LOOPS, **LAYOUTS[name])
    LONG_RUNS["fit"](one)
    for what, run in LONG_RUNS.items():
        with under_way() as found:
            run(one)
        assert 2 <= max(found) <= IN_FLIGHT, what


@pytest.fixture
def compiled_by_xla(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[Any]]:
    """How often XLA has compiled each function of ours.

    A function is traced once for all places in which its arguments lie, and compiled for each.
    """
    found: Counter[Any] = Counter()
    running: list[Compiled] = []

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and running:
            found[running[-1]] += 1

    for kind in (Compiled, _Pmapped):

        def call(self: Compiled, *args: Any, own: Any = kind.__call__) -> Any:
            running.append(self)
            try:
                return own(self, *args)
            finally:
                running.pop()

        monkeypatch.setattr(kind, "__call__", call)
    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


FAST = {("data and fsdp", 1), ("pmap", 4)}


@pytest.mark.parametrize(
    ("name", "steps_per_call"),
    [
        pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow])
        for case in itertools.product(("replicated", "data and fsdp", "pmap"), (1, 4))
    ],
)
def test_each_function_is_compiled_once(
    name: str, steps_per_call: int, compiled_by_xla: Counter[Any]
) -> None:
    spec = ft.OptSpec("adamw", learning_rate=1e-3, ema=0.9)
    options = {"log_every": 4, "steps_per_call": steps_per_call, "verbose": False}
    one = ft.Trainer(Net(), spec, **options, **LAYOUTS[name])
    examples = data(40, dtype="float32")
    # Log points within the run and at its end; evaluations between them; a run that goes on.
    for steps in (10, 8, 6):
        one.fit(examples, steps=steps, batch_size=12, eval_ds=examples, eval_every=6)
        one.predict(examples, batch_size=12)
        one.recompute_batch_stats(examples, batch_size=12)
    # The step and its windows' end, those of evaluation, predictions, statistics.
    assert list(compiled_by_xla.values()) == [1] * 6
