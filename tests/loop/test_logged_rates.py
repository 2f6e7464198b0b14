"""The learning rate in the files of TensorBoard is the spec's, whatever a run goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from tests.models import MLP

Points = list[tuple[int, float]]

UPDATES = 12
SCHEDULE = ft.schedules.warmup_cosine_decay_schedule(0.0, 0.1, 3, UPDATES)


def data(batches: int, bad: tuple[int, ...] = ()) -> list[dict[str, np.ndarray]]:
    """Returns batches, some of them NaN, as a list: their order is known."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(8, 4)).astype("float32") for _ in range(batches)]
    return [
        {"x": x * (np.nan if i in bad else 1), "label": (x[:, 0] > 0).astype("int32")}
        for i, x in enumerate(rows)
    ]


def curves(workdir: Path, run: str) -> dict[str, Points]:
    """Returns the points of each curve, step and value, as they are in the files."""
    files = EventAccumulator(str(workdir / run))
    files.Reload()
    tags = files.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in files.Scalars(tag)] for tag in tags}


def fit(workdir: Path, batches: Any, *lengths: int, **arguments: Any) -> Points:
    """Trains up to each length with a trainer of its own; returns the logged rates by step."""
    spec = ft.OptSpec("adamw", SCHEDULE, nonfinite="skip", **arguments)
    for length in lengths:
        trainer = ft.Trainer(MLP(), spec, workdir=workdir, log_every=3, verbose=False)
        trainer.fit(batches, steps=length)
        assert trainer.state is not None
    assert int(trainer.state.step) == UPDATES
    return curves(workdir, "train")["learning_rate"]


def assert_of_the_spec(rates: Points, steps: list[int]) -> None:
    assert [step for step, _ in rates] == steps
    for step, rate in rates:
        assert rate == pytest.approx(float(SCHEDULE(step - 1)), rel=1e-6)  # float32


def test_of_a_run_with_several_batches_to_an_update(tmp_path: Path) -> None:
    rates = fit(tmp_path, data(24), 24, accumulate=ft.AccumulateBatches(2))
    assert_of_the_spec(rates, [1, 3, 4, 6, 7, 9, 10, 12])


def test_of_a_run_with_microbatches(tmp_path: Path) -> None:
    assert_of_the_spec(fit(tmp_path, data(12), 12, accumulate=4), [3, 6, 9, 12])


def test_of_a_run_with_skipped_steps(tmp_path: Path) -> None:
    # Batches 3 and 4 are bad, and so is the one of the third log point, which has no rate.
    rates = fit(tmp_path, data(15, bad=(3, 4, 8)), 15)
    assert_of_the_spec(rates, [3, 4, 9, 12])


def test_of_a_run_that_was_continued(tmp_path: Path) -> None:
    assert_of_the_spec(fit(tmp_path, data(12), 5, 12), [3, 5, 6, 9, 12])


def test_every_step_has_one_point_on_each_curve(tmp_path: Path) -> None:
    """Log points closer than updates, rejected batches, a run continued within an update."""
    spec = ft.OptSpec("sgd", 0.1, nonfinite="skip", accumulate=ft.AccumulateBatches(3))
    batches = data(15, bad=(4, 5))
    for length in (7, 15):
        trainer = ft.Trainer(MLP(), spec, workdir=tmp_path, log_every=2, verbose=False)
        trainer.fit(batches, steps=length, eval_ds=batches[:1], eval_every=2)
    # 13 batches are accepted, and make four updates.
    train, val = (
        {tag: [step for step, _ in points] for tag, points in curves(tmp_path, run).items()}
        for run in ("train", "val")
    )
    assert train["loss"] == train["learning_rate"] == train["grad_norm"] == [1, 2, 3, 4]
    assert val["loss"] == [0, 1, 2, 3, 4]
    for steps in (*train.values(), *val.values()):
        assert steps == sorted(set(steps))


def test_a_row_has_all_batches_since_the_one_before() -> None:
    losses = []
    for log_every in (1, 3):
        spec = ft.OptSpec("sgd", 0.1, accumulate=ft.AccumulateBatches(3))
        trainer = ft.Trainer(MLP(), spec, log_every=log_every, verbose=False)
        rows = trainer.fit(data(8)).history.train
        assert [row["step"] for row in rows] == [1, 2]  # the last two make no update
        losses.append([row["loss"] for row in rows])
    # The same sums of float32, in two compiled programs.
    np.testing.assert_allclose(*losses, rtol=1e-6)
