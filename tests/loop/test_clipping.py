"""Clipping in a whole run: curves before and after, its memory in a resumed run, the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from tests.runs import bits

STEPS, STOP, LOG_EVERY = 12, 7, 2
SPEC = ft.OptSpec(
    "adamw",
    learning_rate=3e-3,
    weight_decay=0.05,
    clip_norm=0.8,
    clip=[ft.ClipZScore(z=1.0, warmup=3), ft.ClipValue(0.1)],
    groups=[ft.Group("Dense_1", name="head", clip=ft.AdaptiveClip(0.02))],
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


def data() -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype(np.float32) * np.exp(rng.normal(size=(64, 1)))
    table = {"x": x.astype(np.float32), "label": rng.integers(0, 3, 64).astype(np.int32)}
    return ft.data.batches(table, 16, shuffle=True, seed=1)


class Stop(ft.Hook):
    def on_step(self, run: Any) -> None:
        if run.batches == STOP:
            run.stop("as planned")


def trainer(workdir: Path, *hooks: ft.Hook) -> ft.Trainer:
    return ft.Trainer(
        Net(), SPEC, workdir=workdir, hooks=hooks, log_every=LOG_EVERY, verbose=False
    )


class Runs(NamedTuple):
    workdir: Path
    whole: ft.FitResult
    continued: ft.FitResult


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    first, second = (tmp_path_factory.mktemp(name) for name in ("whole", "continued"))
    whole = trainer(first).fit(data(), steps=STEPS)
    trainer(second, Stop()).fit(data(), steps=STEPS)
    return Runs(first, whole, trainer(second).fit(data(), steps=STEPS))


def test_a_continued_run_remembers_the_norms_bit_for_bit(runs: Runs) -> None:
    names = {name for name in bits(runs.whole.state) if "clip_memory" in name}
    assert names == {"opt_state/clip_memory/default/clip_z/seen, mean, variance"}
    assert int(runs.continued.state.step) == STEPS
    assert bits(runs.continued.state) == bits(runs.whole.state)


def test_tensorboard_has_the_norms_before_and_after(runs: Runs) -> None:
    events = EventAccumulator(str(runs.workdir / "train"))
    events.Reload()

    def curve(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    whole, head, rest = (curve("clipped_grad_norm" + end) for end in ("", "/head", "/default"))
    assert set(whole) == set(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    for step, norm in whole.items():
        assert norm == pytest.approx(np.hypot(head[step], rest[step]), rel=1e-6)
        assert norm <= 0.8 * (1 + 1e-6)
    before = {end: curve("grad_norm" + end) for end in ("/head", "/default")}
    assert all(head[step] <= before["/head"][step] * (1 + 1e-6) for step in head)
    # Clipping is active: at some log point the norm is less than half of what it was.
    assert any(
        whole[step] < 0.5 * np.hypot(before["/head"][step], before["/default"][step])
        for step in whole
    )
    rows = {row["step"]: row for row in runs.whole.history.train}
    assert {step: np.float32(rows[step]["clipped_grad_norm"]) for step in whole} == whole


def test_the_plan_lists_the_clips_in_their_order(runs: Runs) -> None:
    plan = trainer(runs.workdir / "elsewhere").plan(data(), steps=STEPS)
    head, rest = plan.groups
    assert list(rest.clips) == ["clip_norm", "clip_z", "clip_value"]
    assert rest.clips["clip_value"][0] == 0.1 and rest.clip_norm[0] == 0.8
    assert list(head.clips) == ["clip_ratio"] and head.clip_norm == {}
    text = str(plan)
    assert "clipping" in text and "clip_norm 0.8; clip_z 1; clip_value 0.1" in text
    assert "clip_ratio 0.02" in text
