"""A run that stops and is continued in the same workdir ends as if it had never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from tests.models import CNN
from tests.runs import bits


def data() -> Any:
    train, _ = ft.data.digits()
    return ft.data.batches({k: v[:300] for k, v in train.items()}, 64, shuffle=True, seed=1)


class StopAt(ft.Hook):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_step(self, run: Any) -> None:
        if run.batches == self.batch:
            run.stop("as planned")


def trainer(workdir: Path | None, hooks: tuple[ft.Hook, ...] = ()) -> ft.Trainer:
    rate = ft.schedules.warmup_cosine_decay_schedule(0.0, 3e-3, "10%", "100%")
    spec = ft.OptSpec("adamw", learning_rate=rate, weight_decay=0.05, clip_norm=1.0)
    return ft.Trainer(
        CNN(classes=10), spec, workdir=workdir, hooks=hooks, log_every=4, verbose=False
    )


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, bytes]:
    """CNN with BatchNorm and dropout, schedule, clipping, shuffled arrays; 20 steps."""
    whole = trainer(None)
    whole.fit(data(), steps=20)
    return bits(whole.state)


@pytest.mark.parametrize("stop", [1, 5, 13])  # the first step, the end of an epoch, within one
def test_a_continued_run_equals_the_uninterrupted_one_bitwise(
    stop: int, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    first = trainer(tmp_path, (StopAt(stop),))
    assert first.fit(data(), steps=20).stopped_because == "as planned"
    second = trainer(tmp_path)
    second.fit(data(), steps=20)
    assert bits(second.state) == uninterrupted


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(), steps=6)
    again = trainer(tmp_path)
    result = again.fit(data(), steps=6)
    assert int(result.state.step) == 6
    assert result.history.train == []


def test_a_killed_process_is_continued_from_its_last_save(
    uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    script = textwrap.dedent(
        """
        import os, sys, flaxtrain as ft
        from tests.loop.test_resume import data, trainer

        class Die(ft.Hook):
            def on_step(self, run):
                if run.batches == 13:
                    os.kill(os.getpid(), 9)

        trainer(sys.argv[1], (ft.SaveEvery(5), Die())).fit(data(), steps=20)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, cwd=root, check=False
    )
    assert killed.returncode == -9
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["10", "5"]
    second = trainer(tmp_path)
    second.fit(data(), steps=20)
    assert bits(second.state) == uninterrupted


def test_tensorboard_curves_of_a_continued_run_do_not_double(tmp_path: Path) -> None:
    trainer(tmp_path, (StopAt(13), ft.SaveEvery(5))).fit(data(), steps=20)
    # The run is found at 13; forget that, as if it had been killed after the save at 10.
    for path in sorted((tmp_path / "checkpoints" / "13").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "checkpoints" / "13").rmdir()
    trainer(tmp_path).fit(data(), steps=20)
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == [4, 8, 12, 16, 20]


def test_another_spec_in_the_same_workdir_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(), steps=3)
    other = ft.Trainer(
        CNN(classes=10), ft.OptSpec("sgd", learning_rate=0.1), workdir=tmp_path, verbose=False
    )
    with pytest.raises(ft.errors.CheckpointError, match="another optimizer spec"):
        other.fit(data(), steps=3)


def test_another_total_is_refused_where_durations_are_relative(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(), steps=3)
    with pytest.raises(ft.errors.CheckpointError, match="another length"):
        trainer(tmp_path).fit(data(), steps=30)


class Halves:
    """A user's own loss scale, which prints its address."""

    def scale(self, loss: Any) -> Any:
        return loss * 0.5

    def unscale(self, grads: Any) -> Any:
        return jax.tree.map(lambda grad: grad * 2.0, grads)

    def adjust(self, finite: Any) -> Halves:
        return self

    at_minimum = True

    def report(self) -> dict[str, Any]:
        return {}


jax.tree_util.register_pytree_node(Halves, lambda _: ((), None), lambda _, __: Halves())


def test_a_loss_scale_of_ones_own_goes_on_without_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.ones((8, 3), np.float32)
    rows = {"x": x, "target": x[:, :1]}

    def fit(steps: int, scale: Any) -> str:
        trainer = ft.Trainer(
            nn.Dense(1), ft.OptSpec("sgd", 0.1), workdir=tmp_path, loss_scale=scale
        )
        trainer.fit(rows, steps=steps)
        return capsys.readouterr().out

    fit(1, Halves())
    told = fit(2, Halves())
    assert "continuing the run" in told and "loss_scale was" not in told
    with pytest.raises(
        ft.errors.CheckpointError, match=r"has loss scale <.*Halves>, the trainer"
    ):
        fit(3, ft.NoScale())
