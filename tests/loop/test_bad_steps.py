"""How a run ends whose steps are rejected for good: soon, with the batch and a report."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ArgumentError, ArgumentTypeError, NonFiniteError, StateError
from flaxtrain.loop.in_flight import IN_FLIGHT
from flaxtrain.parallel.engine import Engine
from tests.runs import bits, refused

X = np.random.default_rng(0).normal(size=(48, 3)).astype("float32")


def arrays(bad: tuple[int, ...] = (), value: float = np.nan) -> dict[str, np.ndarray]:
    x = X.copy()
    x[list(bad), 1] = value
    return {"x": x, "target": X[:, :1]}


def trainer(spec: dict[str, Any] | None = None, **kwargs: Any) -> ft.Trainer:
    declared = ft.OptSpec("adam", 0.01, **(spec or {}))
    return ft.Trainer(nn.Dense(1), declared, verbose=False, **{"log_every": 1000, **kwargs})


def error_of(one: ft.Trainer, ds: Any, **length: Any) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as caught:
        one.fit(ds, **length)
    return caught.value


def kept(state: ft.TrainState | None) -> dict[str, bytes]:
    """Returns the bits of all but the counters."""
    assert state is not None
    return bits((state.step, state.params, state.opt_state, state.collections, state.spikes))


def test_the_report_names_batch_examples_and_file_and_the_file_runs_again(
    tmp_path: Path,
) -> None:
    data = ft.data.batches(arrays(bad=(30,)), 4, shuffle=True, seed=3)
    number = data.order(0).tolist().index(30) // 4
    one = trainer(workdir=tmp_path)
    error = error_of(one, data, epochs=2)
    text, path = str(error), tmp_path / "bad_batches" / f"step-{number}-batch-{number}.npz"
    lines = text.splitlines()
    assert lines[0] == (
        "the loss became NaN or infinite: the batch holds values that are not finite"
    )
    assert lines[1] == (
        f"  where: batch {number} of the run, after {number} updates "
        f"(epoch 0, batch {number}, example 30)"
    )
    assert f"  saved: {path}, read it with ft.data.load_batch" in lines
    assert lines[-1].startswith("  fix:   trainer.state is the last good state; repair")
    batch, mask = ft.data.load_batch(path)
    rows = data.order(0)[4 * number : 4 * number + 4]
    assert batch["x"].tobytes() == arrays(bad=(30,))["x"][rows].tobytes() and mask is None
    again = ft.diagnose(one, None, batch, mask)
    assert isinstance(error.diagnosis, ft.Diagnosis)
    assert str(again) == str(error.diagnosis)
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["examples"] == rows.tolist() and report["text"] == str(again)
    assert report["diagnosis"]["inputs"][1]["rows"] == [rows.tolist().index(30)]


def test_the_latch_is_seen_while_the_batch_is_held_and_not_at_the_log_point() -> None:
    seen: list[int] = []

    class Count(ft.Hook):
        def on_step(self, run: Any) -> None:
            seen.append(run.batches)

    def endless() -> Iterator[dict[str, np.ndarray]]:
        for index in itertools.count():
            rows = slice(0, 4) if index != 20 else slice(4, 8)
            yield {key: leaf[rows] for key, leaf in arrays(bad=(5,)).items()}

    one = trainer(hooks=[Count()])
    error = error_of(one, endless, steps=1000)
    assert "where: batch 20 of the run, after 20 updates (epoch 0, batch 20)" in str(error)
    assert "saved" not in str(error)
    assert max(seen) <= 20 + IN_FLIGHT
    assert int(one.state.step) == 20  # type: ignore[union-attr]


def test_the_place_is_that_of_the_batch_in_a_later_epoch_of_an_iterable() -> None:
    epochs = itertools.count()

    def ds() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        epoch = next(epochs)
        for index in range(5):
            x = X[4 * index : 4 * index + 4].copy()
            x[2] = np.inf if (epoch, index) == (1, 2) else 1.0
            yield x, X[:4, :1]

    one = trainer(log_every=2)
    error = error_of(one, ds, epochs=3)
    assert "batch 7 of the run, after 7 updates (epoch 1, batch 2)" in str(error)
    assert "in row 2" in str(error)


def test_skipping_ends_after_so_many_and_leaves_every_bit_as_before() -> None:
    good = [{k: v[i : i + 4] for k, v in arrays().items()} for i in range(0, 48, 4)]
    nothing = {**good[0], "x": np.full_like(good[0]["x"], np.nan)}
    policy = {"nonfinite": "skip", "max_skips": 3}
    before = trainer(policy)
    before.fit(good[:5])
    one = trainer(policy)
    # Two bad ones in a row are forgiven, the third ends the run.
    ds = [*good[:2], nothing, nothing, *good[2:5], *[nothing] * 3, *good[5:]]
    error = error_of(one, ds)
    assert "rejected in a row: 3 steps" in str(error)
    assert "where: batch 9 of the run, after 5 updates" in str(error)
    assert "more of them be skipped in a row than max_skips=3" in str(error)
    assert kept(one.state) == kept(before.state)
    assert one.state is not None and int(one.state.counters.skipped) == 5
    assert int(one.fit(good).state.step) == 17


@pytest.mark.parametrize("nonfinite", [pytest.param("raise", marks=pytest.mark.slow), "skip"])
def test_a_scale_that_is_stuck_at_its_minimum_is_an_error_under_both_policies(
    nonfinite: str,
) -> None:
    one = trainer(
        {"nonfinite": nonfinite, "max_skips": 4},
        loss_scale=ft.DynamicScale(init=8.0, min=2.0, growth_interval=100),
    )
    error = error_of(one, ft.data.batches(arrays(bad=tuple(range(16, 48))), 4), steps=12)
    skips = {"raise": 3, "skip": 4}[nonfinite]
    lines = [line for line in str(error).splitlines() if "loss scale" in line]
    assert lines == ["  loss scale: 2, its minimum is 2"]
    assert f"rejected in a row: {skips} steps" in error.found
    assert int(one.state.step) == 4  # type: ignore[union-attr]


def test_a_planted_spike_is_skipped_and_training_goes_on_as_if_it_had_not_been() -> None:
    rule = ft.Spikes(8.0, window=6, of="loss")
    good = [{k: v[i : i + 4] for k, v in arrays().items()} for i in range(0, 48, 4)]
    spike = {**good[0], "target": good[0]["target"] + 1e3}
    runs = []
    for ds in ([*good[:8], spike, *good[8:]], good):
        one = trainer({"spikes": rule}, log_every=1)
        runs.append((one.fit(ds), one))
    (result, one), (_, plain) = runs
    assert kept(one.state) == kept(plain.state)
    assert [row.get("spikes") for row in result.history.train][7:10] == [None, 1.0, 1.0]
    assert all(row["loss"] < 100 for row in result.history.train if "loss" in row)
    error = error_of(one, [spike] * 20)
    assert "loss" in str(error) and "robust standard deviations above" in str(error)
    assert "rejected in a row: 10 steps" in str(error)
    assert "larger z or max_skips=None" in str(error)


@pytest.mark.slow
def test_the_window_goes_on_in_a_run_that_is_continued_and_is_new_for_a_new_rule(
    tmp_path: Path,
) -> None:
    rule = {"spikes": ft.Spikes(8.0, window=6)}
    whole = trainer(rule)
    whole.fit(arrays(), steps=8, batch_size=8)
    for steps in (5, 8):
        part = trainer(rule, workdir=tmp_path)
        part.fit(arrays(), steps=steps, batch_size=8)
    assert kept(part.state) == kept(whole.state)
    saved = ft.checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and part.recipe is not None
    plain = ft.make_recipe(nn.Dense(1), ft.OptSpec("adam", 0.01), part.recipe.example)
    restored = ft.checkpoint.restore(saved, like=plain.init(0))
    assert jax.tree.leaves(restored.spikes) == [] and int(restored.step) == 8
    ft.checkpoint.save(tmp_path / "plain", restored)
    again = ft.checkpoint.restore(tmp_path / "plain", like=part.recipe.init(0))
    assert int(again.spikes.count) == 0 and int(again.step) == 8


def test_a_batch_that_can_not_be_saved_does_not_hide_the_report(tmp_path: Path) -> None:
    (tmp_path / "bad_batches").write_text("in the way")
    error = error_of(trainer(workdir=tmp_path), arrays(bad=(0,)), steps=3, batch_size=8)
    assert "saved: the batch could not be saved, " in str(error) and "example 0" in str(error)


def test_nor_does_a_batch_that_no_file_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise TypeError("not this one\nat all")

    monkeypatch.setattr("flaxtrain.loop.bad_steps.save_batch", refuse)
    error = error_of(trainer(workdir=tmp_path), arrays(bad=(0,)), steps=3, batch_size=8)
    assert "saved: the batch could not be saved, TypeError: not this one\n" in str(error)
    assert isinstance(error.diagnosis, ft.Diagnosis)


def test_a_full_disk_leaves_no_half_a_file_and_keeps_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    error = error_of(trainer(workdir=tmp_path), arrays(bad=(0,)), steps=3, batch_size=8)
    assert "could not be saved, OSError: [Errno 28] No space left on device" in str(error)
    assert "example 0" in str(error) and not list((tmp_path / "bad_batches").iterdir())


def test_an_error_of_another_kind_leaves_a_state_that_goes_on() -> None:
    class Fails(ft.Hook):
        def on_step(self, run: Any) -> None:
            if run.batches == 5:
                raise RuntimeError("this hook fails")

    one = trainer(hooks=[Fails()])
    good = [{k: v[i : i + 4] for k, v in arrays().items()} for i in range(0, 48, 4)]
    bad = {k: v[:4] for k, v in arrays(bad=(0,)).items()}
    with pytest.raises(RuntimeError, match="this hook fails") as caught:
        one.fit([*good[:3], bad, *good[3:]])
    assert caught.value.__notes__ == ["before that, batch 3 of the run was a bad step"]
    one.hooks = ()
    assert int(one.fit(good).state.step) == 15


def test_a_hook_that_fails_at_the_last_log_point_does_not_hide_the_report() -> None:
    class Fails(ft.Hook):
        def on_log(self, run: Any, step: int, metrics: dict[str, float]) -> None:
            raise RuntimeError("no place for metrics")

    error = error_of(trainer(hooks=[Fails()]), arrays(bad=(3,)), steps=6, batch_size=8)
    assert "example 3" in str(error)
    assert error.__notes__ == [
        "and at the log point before it: RuntimeError('no place for metrics')"
    ]


def test_a_streak_of_skips_goes_on_in_a_state_that_was_not_halted() -> None:
    one = trainer({"nonfinite": "skip", "max_skips": 4})
    good = {k: v[:4] for k, v in arrays().items()}
    bad = {k: v[:4] for k, v in arrays(bad=(0,)).items()}
    state = one.fit([good, bad, bad]).state.resumable()
    assert int(state.counters.consecutive_skipped) == 2
    error = error_of(one, [bad] * 4)
    assert "rejected in a row: 4 steps" in str(error)
    assert "batch 4 of the run, after 1 update (" in str(error)
    assert int(one.state.counters.consecutive_skipped) == 0  # type: ignore[union-attr]


def test_of_a_run_with_cached_features_the_batch_is_saved_without_them(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Dense(4), nn.Dense(1)])
    spec = ft.OptSpec("adam", 0.01, freeze=[ft.Freeze("layers_0/**")])
    one = ft.Trainer(model, spec, verbose=False, workdir=tmp_path)
    data = ft.data.batches(arrays(bad=(5,)), 4)
    error = error_of(one, data, epochs=1, cache_frozen=True)
    batch, mask = ft.data.load_batch(next((tmp_path / "bad_batches").glob("*.npz")))
    assert sorted(batch) == ["target", "x"]
    assert str(ft.diagnose(one, None, batch, mask)) == str(error.diagnosis)


@pytest.mark.usefixtures("unchecked_types")
def test_diagnose_refuses_what_is_no_run() -> None:
    batch = {key: leaf[:4] for key, leaf in arrays().items()}
    diagnose: Any = ft.diagnose
    refused(lambda: diagnose(trainer(), None, batch), StateError, "no recipe yet")
    refused(lambda: diagnose("runs/1", None, batch), ArgumentTypeError, "run is a str")
    recipe = ft.make_recipe(nn.Dense(1), ft.OptSpec("sgd", 0.1), batch)
    refused(lambda: diagnose(recipe, {}, batch), ArgumentTypeError, "state is a dict")
    assert diagnose(recipe, recipe.init(0), batch).is_finite
    for mask in (np.ones(3, bool), np.ones(4), "all"):
        refused(
            lambda m=mask: diagnose(recipe, recipe.init(0), batch, m),
            ArgumentError,
            "the batch has 4 rows",
        )


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))


def test_a_report_needs_no_slots_no_averages_and_no_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ft.OptSpec("adam", 0.01, ema=0.9, accumulate=ft.AccumulateBatches(2))
    one, asked, bad = ft.Trainer(Normed(), spec, verbose=False), [], arrays(bad=(13,))
    monkeypatch.setattr(Engine, "readable", lambda self, tree: asked.append(tree) or tree)
    error = error_of(one, ft.data.batches(bad, 4, shuffle=False), steps=6)
    assert one.state is not None
    (found,) = asked
    for name in ("params", "collections"):
        assert bits(getattr(found, name)) == bits(getattr(one.state, name))
    rest = jax.tree.leaves(found.replace(params={}, collections={}))
    assert max(leaf.size for leaf in rest) == 1
    # Batch 3 is the second one of an update: which keys are its own is still known.
    assert int(found.accumulated.count) == 1
    rows = {name: leaf[12:16] for name, leaf in bad.items()}
    assert str(ft.diagnose(one, one.state, rows)) == str(error.diagnosis)
