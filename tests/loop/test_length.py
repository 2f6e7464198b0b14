"""How long a run is: the loop is told batches, a spec says updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.loop.length import epochs_and_notes, horizon_of
from flaxtrain.loop.streams import training_stream
from tests.models import MLP

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
DATA = {"x": X, "label": (X[:, 0] > 0).astype("int32")}
FOUR = ft.AccumulateBatches(4)


@pytest.mark.parametrize(
    ("steps", "epochs", "batches", "updates"),
    [(None, None, 6, 1), (None, 2, 12, 3), (8, None, 8, 2), (2, None, 2, 1)],
)
def test_a_horizon_knows_its_batches_and_its_updates(
    steps: int | None, epochs: int | None, batches: int, updates: int
) -> None:
    stream, _ = training_stream(DATA, 8, 0)
    horizon = horizon_of(stream, steps, epochs, FOUR)
    assert (horizon.batches, horizon.updates) == (batches, updates)
    assert (horizon.batches_per_epoch, horizon.batch_size) == (6, 8)


def test_only_where_a_batch_is_no_update_steps_have_to_be_explained() -> None:
    assert epochs_and_notes(10, None, ft.AccumulateBatches(1, microbatches=4)) == (None, [])
    assert epochs_and_notes(None, 2, FOUR) == (2, [])
    epochs, (note,) = epochs_and_notes(10, None, FOUR)
    assert epochs is None
    assert note.startswith("steps=10 counts batches; they make at most 2 updates")
    epochs, (note,) = epochs_and_notes(None, None, FOUR)
    assert epochs == 1 and note.endswith("one epoch")


def test_steps_and_periods_of_fit_count_batches_and_the_spec_counts_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = ft.schedules.linear_schedule(1.0, 0.0, transition_steps="100%")
    saves = tmp_path / "saves"
    trainer = ft.Trainer(
        MLP(),
        ft.OptSpec("sgd", schedule, accumulate=ft.AccumulateBatches(2)),
        hooks=[ft.SaveEvery("1ep", saves)],
        log_every=2,
    )
    arguments: dict[str, Any] = {"steps": 12, "batch_size": 8}
    result = trainer.fit(DATA, eval_ds=DATA, eval_every=4, **arguments)
    assert "steps=12 counts batches; they make at most 6 updates" in capsys.readouterr().out
    assert (int(result.state.step), int(result.state.counters.batches)) == (6, 12)
    # Every 4 batches and every epoch of 6 batches; both are labelled with updates.
    assert [row["step"] for row in result.history.val] == [2, 4, 6]
    assert sorted(path.name for path in saves.iterdir()) == ["3", "6"]
    rates = [row["learning_rate"] for row in result.history.train]
    np.testing.assert_allclose(rates, [1 - k / 6 for k in range(6)], rtol=1e-6)  # float32
