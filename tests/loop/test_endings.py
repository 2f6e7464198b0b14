"""How runs end: bad steps, failing hooks, stops, and what is left behind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft


def data(rows: int = 40, bad: int | None = None) -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype("float32")
    label = (x[:, 0] > 0).astype("int32")
    if bad is not None:
        x[4 * bad] = np.nan
    return [{"x": x[i : i + 4], "label": label[i : i + 4]} for i in range(0, rows, 4)]


def trainer(**kwargs: Any) -> ft.Trainer:
    spec = kwargs.pop("spec", ft.OptSpec("sgd", learning_rate=0.1))
    return ft.Trainer(nn.Dense(2), spec, verbose=False, log_every=2, **kwargs)


def test_after_a_bad_step_the_same_trainer_goes_on_with_good_data() -> None:
    one = trainer()
    with pytest.raises(ft.errors.NonFiniteError, match="batch 3"):
        one.fit(data(bad=3))
    assert int(one.state.step) == 3  # type: ignore[union-attr]
    assert int(one.fit(data()).state.step) == 13


def test_an_error_right_after_the_first_step_leaves_the_state_after_it() -> None:
    class Fails(ft.Hook):
        def on_phase(self, run: ft.loop.Run, step: int) -> None:
            raise ValueError("no more disk")

    spec = ft.OptSpec("sgd", learning_rate=0.1, freeze=ft.Freeze("bias", until=3))
    one = trainer(spec=spec, hooks=[Fails()])
    one.fit(data(), steps=2)
    # The first step of this call ends a phase. The state before it was given to it.
    with pytest.raises(ValueError, match="no more disk"):
        one.fit(data(), steps=2)
    assert int(one.state.step) == 3  # type: ignore[union-attr]
    assert np.isfinite(one.evaluate(data())["loss"])


def test_after_a_bad_step_the_workdir_goes_on_with_repaired_data(tmp_path: Path) -> None:
    with pytest.raises(ft.errors.NonFiniteError):
        trainer(workdir=tmp_path).fit(data(bad=3))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    result = trainer(workdir=tmp_path).fit(data())
    # Batch 3 was seen, and rejected: six of the ten are left.
    assert int(result.state.step) == 9
    assert int(result.state.counters.batches) == 10


def test_checkpoints_are_named_by_updates(tmp_path: Path) -> None:
    spec = ft.OptSpec("sgd", learning_rate=0.1, nonfinite="skip")
    trainer(spec=spec, workdir=tmp_path, hooks=[ft.SaveEvery(5)]).fit(data(bad=3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "9"]


def test_skipped_steps_are_seen_in_the_history() -> None:
    spec = ft.OptSpec("sgd", learning_rate=0.1, nonfinite="skip")
    rows = trainer(spec=spec).fit(data(bad=3)).history.train
    assert [row.get("skipped") for row in rows] == [None, 1, 1, 1, 1]
    nothing = [{**batch, "x": np.full_like(batch["x"], np.nan)} for batch in data()]
    rows = trainer(spec=spec.replace(max_skips=None)).fit(nothing).history.train
    assert rows[-1] == {
        "step": 0,
        "skipped": 10,
        **{k: v for k, v in rows[-1].items() if "_" in k},
    }


def test_a_failing_hook_keeps_no_other_from_its_end(tmp_path: Path) -> None:
    class Fails(ft.Hook):
        def on_end(self, run: Any) -> None:
            raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        trainer(workdir=tmp_path, hooks=[Fails()]).fit(data())
    assert ft.checkpoint.latest(tmp_path / "checkpoints").name == "10"  # type: ignore[union-attr]


def test_a_failing_hook_does_not_hide_why_the_run_ended() -> None:
    class Fails(ft.Hook):
        def on_exception(self, run: Any, error: BaseException) -> None:
            raise RuntimeError("my own mistake")

    with pytest.raises(ft.errors.NonFiniteError) as caught:
        trainer(hooks=[Fails()]).fit(data(bad=1))
    assert "my own mistake" in caught.value.__notes__[0]


def test_a_hook_that_did_not_start_is_not_ended() -> None:
    with pytest.raises(ft.errors.StateError, match="needs a directory"):
        trainer(hooks=[ft.TensorBoard(), ft.SaveEvery(5)]).fit(data())


def test_the_evaluation_after_a_stop_reaches_tensorboard(tmp_path: Path) -> None:
    class Stop(ft.Hook):
        def on_log(self, run: Any, step: int, metrics: dict[str, float]) -> None:
            run.stop("enough")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = trainer(workdir=tmp_path, hooks=[Stop()])
        result = one.fit(data(80), epochs=1, eval_ds=data(), eval_every=3)
    events = EventAccumulator(str(tmp_path / "val")).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == [row["step"] for row in result.history.val]
    assert steps[-1] == int(result.state.step)


def test_one_saving_hook_serves_two_runs(tmp_path: Path) -> None:
    save = ft.SaveEvery(5)
    for name in ("one", "two"):
        trainer(workdir=tmp_path / name, hooks=[save]).fit(data())
        found = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert found == ["10", "5"]


def test_a_first_fit_that_fails_to_start_changes_no_total(tmp_path: Path) -> None:
    trainer(workdir=tmp_path).fit(data(), steps=6)
    again = trainer(workdir=tmp_path)
    with pytest.raises(ft.FlaxtrainError):
        again.fit(data(), steps=10, eval_ds=[])
    assert int(again.fit(data(), steps=10).state.step) == 10


def test_the_last_step_reports_rate_and_norms_in_a_run_shorter_than_a_window() -> None:
    one = ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", learning_rate=0.1), verbose=False)
    (row,) = one.fit(data()).history.train
    assert row["learning_rate"] == pytest.approx(0.1)
    assert row["update_norm"] > 0 and row["param_norm"] > 0


def test_predictions_of_shuffled_batches_are_in_order() -> None:
    x = np.arange(30, dtype="float32").reshape(10, 3)
    arrays = {"x": x, "label": np.zeros(10, "int32")}
    one = trainer()
    one.fit(arrays, steps=1)
    plain = one.predict(arrays)
    shuffled = one.predict(ft.data.batches(arrays, 4, shuffle=True))
    assert np.allclose(plain, shuffled, atol=1e-6)  # batches of 4 instead of 128


def test_a_resume_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {"x": np.ones((40, 3), "float32"), "label": np.zeros(40, "int32")}
    spec = ft.OptSpec("sgd", learning_rate=0.1)
    ft.Trainer(nn.Dense(2), spec, workdir=tmp_path).fit(arrays, steps=3, batch_size=4)
    capsys.readouterr()
    ft.Trainer(nn.Dense(2), spec, workdir=tmp_path, seed=5).fit(arrays, steps=4, batch_size=8)
    said = capsys.readouterr().out
    assert "seed was 0 and is 5" in said
    assert "batch_size was 4 and is 8" in said
