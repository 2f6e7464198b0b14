"""Several steps in one call: the same run, in fewer calls."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    DataError,
    NonFiniteError,
    UnknownNameError,
)
from flaxtrain.loop.steps_per_call import CallForm, StepsPerCall, StepTimes
from tests.runs import bits, deviation, refused

X = np.random.default_rng(0).normal(size=(75, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")

FLOAT64_BAR = 1e-12
"""Two programs in float64: a few thousand roundings, and none of them in float32."""

RATES = ("steps_per_sec", "examples_per_sec", "data_wait_share")


class Mlp(nn.Module):
    """With dropout, whose keys are folded from the number of the step."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.relu(nn.Dense(8, param_dtype=x.dtype)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(2, param_dtype=x.dtype)(x)


class Cnn(nn.Module):
    """With convolutions, so that steps are written out on a CPU."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = x.reshape(-1, 6, 1)
        # No bias: its gradient is 0 but for roundings, which Adam makes whole steps of.
        x = nn.Conv(3, (3,), use_bias=False, param_dtype=x.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, param_dtype=x.dtype)(x)
        return nn.Dense(2, param_dtype=x.dtype)(nn.relu(x).reshape(x.shape[0], -1))


class Told(ft.Hook):
    """Notes where calls end, and what else is said."""

    def __init__(self, every: int | None = None) -> None:
        self.ends: list[int] = []
        self.phases: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.every = every

    def period(self, run: Any) -> int | None:
        return self.every

    def on_step(self, run: Any) -> None:
        self.ends.append(run.batches)

    def on_phase(self, run: Any, step: int) -> None:
        self.phases.append((run.batches, step))

    def on_note(self, run: Any, note: str) -> None:
        self.notes.append(note)


def trainer(k: int | str, spec: Any = None, **kwargs: Any) -> ft.Trainer:
    model, log_every = kwargs.pop("model", Mlp()), kwargs.pop("log_every", 10)
    spec = spec or ft.OptSpec("adam", 0.01)
    options = {"verbose": False, "log_every": log_every, "steps_per_call": k, **kwargs}
    return ft.Trainer(model, spec, **options)


def arrays(dtype: str = "float32", bad: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    x = X.astype(dtype)
    x[list(bad), 1] = np.nan
    return {"x": x, "label": Y}


def rows(result: ft.FitResult) -> list[dict[str, float]]:
    found = result.history.train + result.history.val
    return [{k: v for k, v in row.items() if k not in RATES} for row in found]


def assert_same_run(
    one: tuple[ft.Trainer, ft.FitResult], other: tuple[ft.Trainer, ft.FitResult], bar: float
) -> None:
    a, b = (run.state for run, _ in (one, other))
    assert a is not None and b is not None
    assert deviation(a.replace(rng=0), b.replace(rng=0)) <= bar
    before, after = rows(one[1]), rows(other[1])
    assert [row.keys() for row in before] == [row.keys() for row in after]
    assert [row["step"] for row in before] == [row["step"] for row in after]
    # Metrics are added up in float32.
    for x, y in zip(before, after, strict=True):
        np.testing.assert_allclose(list(x.values()), list(y.values()), rtol=2e-6)


def points(workdir: Path) -> list[tuple[str, int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for name in ("train", "val"):
        read = EventAccumulator(str(workdir / name)).Reload()
        found += [(tag, p.step) for tag in read.Tags()["scalars"] for p in read.Scalars(tag)]
    return sorted((tag, step) for tag, step in found if tag not in RATES)


def test_a_run_is_the_same_in_fewer_calls(tmp_path: Path) -> None:
    """Ragged epochs of 10 batches, evaluations and saves beside log points, a short end."""
    runs, saved = [], []
    with jax.enable_x64(True):
        for k in (1, 4):
            hook, place = Told(), tmp_path / str(k)
            one = trainer(k, workdir=place, hooks=[hook, ft.SaveEvery(14)])
            data = arrays("float64")
            runs.append(
                (one, one.fit(data, steps=33, batch_size=8, eval_ds=data, eval_every=6))
            )
            saved.append(sorted(path.name for path in (place / "checkpoints").iterdir()))
            assert one.compilations == {"train": 1, "eval": 1}
        assert_same_run(runs[0], runs[1], FLOAT64_BAR)
    assert hook.ends == [4, 6, 10, 12, 14, 18, 20, 24, 28, 30, 33]
    assert saved[0] == saved[1] == ["14", "28", "33"]
    assert points(tmp_path / "1") == points(tmp_path / "4") != []


def test_steps_that_are_written_out_are_the_same_run_and_short_blocks_the_same_program() -> (
    None
):
    runs = []
    with jax.enable_x64(True):
        for k in (1, 3):
            one = trainer(k, model=Cnn(), log_every=5)
            runs.append((one, one.fit(arrays("float64"), steps=12, batch_size=8)))
            assert one.compilations["train"] == 1
            call_form = one._programs.steps_per_call.call_form
            assert call_form is not None and call_form.form == ("single", "unrolled")[k > 1]
        assert_same_run(runs[0], runs[1], FLOAT64_BAR)


@pytest.mark.parametrize("form", ["loop", "unrolled"])
def test_a_step_that_is_not_asked_for_changes_no_bit(form: Any) -> None:
    one = trainer(2, ft.OptSpec("adam", 0.1, ema=ft.Ema(0.9)))
    one.fit(arrays(), steps=2, batch_size=8)
    assert one.recipe is not None and one.state is not None
    program = one._programs.train(one.recipe)
    batch = {"x": np.full((2, 8, 6), np.nan, "float32"), "label": np.zeros((2, 8), "int32")}
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    state = one.state
    kept = bits(state)
    window = program.empty_window(state, first, None)
    zeros = bits(window)
    span, last = np.array([2, 2], "int32"), np.int32(-1)
    masks = np.ones((2, 8), bool)
    step = program.block(CallForm(2, form))
    state, window, status, _ = step(state, window, batch, masks, last, span)
    assert bits(state) == kept
    assert bits(window) == zeros
    assert status.tolist() == [2, 2, 0, 0, 0]


def test_bad_steps_within_a_call_are_skipped_as_they_are_one_by_one() -> None:
    runs = []
    for k in (1, 5):
        one = trainer(k, ft.OptSpec("adam", 0.01, nonfinite="skip"))
        data = ft.data.batches(arrays(bad=(17, 41)), 8)
        runs.append((one, one.fit(data, steps=20)))
    assert_same_run(runs[0], runs[1], 2e-6)
    state = runs[1][0].state
    assert state is not None and int(state.counters.skipped) == 4 and int(state.step) == 16


def test_a_bad_step_ends_the_run_with_its_own_batch(tmp_path: Path) -> None:
    ends, states = [], []
    for k in (1, 5):
        data = ft.data.batches(arrays(bad=(30,)), 8, shuffle=True, seed=3)
        one = trainer(k, workdir=tmp_path / str(k))
        with pytest.raises(NonFiniteError) as caught:
            one.fit(data, steps=40)
        number = data.order(0).tolist().index(30) // 8
        assert number % 5 != 4, "there are steps behind it in its call"
        lines = str(caught.value).splitlines()
        ends.append([line for line in lines if "saved:" not in line])
        path = tmp_path / str(k) / "bad_batches" / f"step-{number}-batch-{number}.npz"
        batch, mask = ft.data.load_batch(path)
        assert (
            mask is not None
            and mask.all()
            and batch["x"].shape == (8, 6)
            and np.isnan(batch["x"]).any()
        )
        states.append(one.state)
        assert int(one.state.step) == number  # type: ignore[union-attr]
    assert ends[0] == ends[1] and "example 30" in ends[1][1]
    assert deviation(states[0].replace(rng=0), states[1].replace(rng=0)) <= 2e-6


def test_a_phase_begins_at_its_update_though_a_step_before_it_was_rejected() -> None:
    runs, hooks = [], []
    for k in (1, 4):
        hooks.append(Told())
        freeze = ft.Freeze("Dense_0", until=7)
        spec = ft.OptSpec("adam", 0.01, freeze=[freeze], nonfinite="skip")
        one = trainer(k, spec, hooks=[hooks[-1]])
        data = ft.data.batches(arrays(bad=(17,)), 8)
        runs.append((one, one.fit(data, steps=18)))
        assert one.compilations["train"] == 2
    assert_same_run(runs[0], runs[1], 2e-6)
    assert hooks[0].phases == hooks[1].phases == [(8, 7)]
    assert hooks[1].ends == [4, 7, 8, 10, 14, 18]


def test_batches_of_one_update_may_be_in_different_calls() -> None:
    runs = []
    for k in (1, 4):
        spec = ft.OptSpec("adam", 0.01, accumulate=ft.AccumulateBatches(3))
        one = trainer(k, spec)
        runs.append((one, one.fit(arrays(), steps=21, batch_size=8)))
    assert_same_run(runs[0], runs[1], 2e-6)


def test_a_hook_says_when_it_has_to_be_called() -> None:
    hook = Told(every=6)
    trainer(4, hooks=[hook]).fit(arrays(), steps=20, batch_size=8)
    assert hook.ends == [4, 6, 10, 12, 16, 18, 20]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("every", "kind"), [(0, ArgumentError), (2.5, ArgumentTypeError)])
def test_a_period_that_is_none_is_refused(every: Any, kind: Any) -> None:
    one = trainer(4, hooks=[Told(every)])
    refused(lambda: one.fit(arrays(), steps=4, batch_size=8), kind, "period")


def test_ctrl_c_ends_the_run_behind_the_call() -> None:
    class Interrupt(Told):
        def on_step(self, run: Any) -> None:
            super().on_step(run)
            os.kill(os.getpid(), signal.SIGINT)

    one = trainer(4, hooks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        one.fit(arrays(), steps=20, batch_size=8)
    assert one.state is not None and int(one.state.step) == 4
    one.hooks = ()
    assert int(one.fit(arrays(), steps=2, batch_size=8).state.step) == 6


def test_batches_before_one_that_fails_are_trained_on() -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        for index in range(20):
            if index == 6:
                raise OSError("disk gone")
            yield {key: leaf[:8] for key, leaf in arrays().items()}

    one = trainer(4)
    with pytest.raises(DataError, match="disk gone") as caught:
        one.fit(broken, steps=20)
    assert caught.value.where == "epoch 0, batch 6"
    assert one.state is not None and int(one.state.step) == 6


def test_auto_times_a_few_steps_once_and_what_it_chose_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTimes, "seconds", 0.002)
    hooks = []
    for steps in (24, 40):
        hooks.append(Told())
        one = trainer("auto", workdir=tmp_path, hooks=[hooks[-1]], log_every=12)
        one.fit(arrays(), steps=steps, batch_size=8)
    assert hooks[0].notes == [
        "steps_per_call='auto' has chosen 12: a step takes 2 ms, a batch 232 B, and 12 divides "
        "log_every 12"
    ]
    # Five that are timed, behind the one that is compiled, and one that was read ahead.
    assert hooks[0].ends == [1, 2, 3, 4, 5, 6, 7, 12, 24]
    assert hooks[1].notes == [] and hooks[1].ends == [36, 40]
    assert one.compilations["train"] == 1
    meta = ft.checkpoint.read_meta(tmp_path / "checkpoints" / "40")
    assert meta["steps_per_call"] == {"steps": 12, "form": "loop"}


def test_another_number_of_steps_is_said_of_a_run_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(4, workdir=tmp_path).fit(arrays(), steps=4, batch_size=8)
    trainer(5, workdir=tmp_path, verbose=True).fit(arrays(), steps=8, batch_size=8)
    said = "steps_per_call was 4 and is 5: what follows agrees up to rounding, not bit for bit"
    assert said in capsys.readouterr().out


def test_a_checkpoint_whose_steps_per_call_are_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StepsPerCall, "as_meta", lambda self: {"steps_per_call": 4})
        trainer(4, workdir=tmp_path).fit(arrays(), steps=4, batch_size=8)
    one = trainer(4, workdir=tmp_path)
    with pytest.raises(CheckpointError, match="says of steps_per_call can't be read") as caught:
        one.fit(arrays(), steps=8, batch_size=8)
    assert caught.value.where == str(tmp_path / "checkpoints" / "4") and caught.value.fix


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, ArgumentError, "steps_per_call"),
        (-1, ArgumentError, "steps_per_call"),
        (True, ArgumentTypeError, "steps_per_call"),
        (2.5, ArgumentTypeError, "steps_per_call"),
        (None, ArgumentTypeError, "steps_per_call"),
        ("often", UnknownNameError, "often"),
        (11, ArgumentError, "steps_per_call=11, but log_every=10"),
    ],
)
def test_what_is_no_number_of_steps_is_refused(value: Any, kind: Any, text: str) -> None:
    refused(lambda: trainer(value), kind, text)


def test_more_steps_than_can_be_written_out_are_refused_before_the_first() -> None:
    one = trainer(65, model=Cnn(), log_every=100)
    refused(lambda: one.fit(arrays(), steps=3, batch_size=8), ArgumentError, "convolutions")
    assert one.state is None
