"""`fit(debug="smoke")`: two steps of everything, and nothing of it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, DataError, UnknownNameError
from flaxtrain.loop.debug.scratch import scratch
from flaxtrain.loop.debug.smoke import hurried
from flaxtrain.train import make_recipe
from tests.runs import bits, refused

X = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
DATA = {"x": X, "label": (np.arange(22) % 3).astype(np.int32)}
SPEC = ft.OptSpec("adam", learning_rate=0.1)
MODEL = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])


class Seen(ft.Hook):
    """Notes what happens in a run; copies share the list."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_step(self, run: Any) -> None:
        self.events.append(("step", run.recipe.phase.index))

    def on_log(self, run: Any, step: int, metrics: Any) -> None:
        self.events.append(("log", step))

    def on_eval(self, run: Any, step: int, metrics: Any) -> None:
        self.events.append(("eval", step))

    def on_end(self, run: Any) -> None:
        self.events.append(("end", run.workdir))


class Notes(ft.Hook):
    """Writes to a place of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[str] = []

    def elsewhere(self, directory: Path) -> Notes:
        directory.mkdir()
        moved = Notes(directory / "notes.txt")
        moved.written = self.written
        return moved

    def on_end(self, run: Any) -> None:
        self.path.write_text("the end")
        self.written.append(self.path.name)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.slow  # fast ones: the phases by themselves, and a rehearsal of one phase
def test_every_phase_is_entered_and_nothing_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    freeze = [ft.Freeze("layers_0/kernel", until=30), ft.Freeze("layers_0/bias", until="50%")]
    seen, workdir = Seen(), tmp_path / "new" / "run"
    own = ft.SaveEvery(directory=tmp_path / "own")
    trainer = ft.Trainer(
        MODEL, SPEC.replace(freeze=freeze), workdir=workdir, hooks=[seen, own, ft.SaveEvery()]
    )
    result = trainer.fit(
        DATA, steps=100, batch_size=4, eval_ds=DATA, eval_every="1ep", debug="smoke"
    )
    steps = [phase for name, phase in seen.events if name == "step"]
    assert steps == [0, 1, 1, 2, 2, 2]  # the phase that is next after each step
    assert [step for name, step in seen.events if name == "log"] == [2, 4, 6]
    assert [step for name, step in seen.events if name == "eval"] == [2, 4, 6]
    assert int(result.state.step) == 6 and len(result.history.val) == 3
    assert files(tmp_path) == []
    assert trainer.state is None and trainer.recipe is None
    assert trainer.compilations == {"train": 0, "eval": 0}
    printed = capsys.readouterr().out
    assert "2 batches of training in each of 3 phases" in printed
    assert "a checkpoint, restored to the same state; nothing of it is kept" in printed


def test_state_and_places_of_hooks_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes, own = Notes(tmp_path / "notes.txt"), ft.SaveEvery(directory=tmp_path / "own")
    trainer = ft.Trainer(MODEL, SPEC, workdir=tmp_path / "run", hooks=[notes, own])
    trainer.recipe = ft.make_recipe(MODEL, SPEC, {key: leaf[:4] for key, leaf in DATA.items()})
    trainer.state = state = trainer.recipe.init(0)
    result = trainer.fit(DATA, steps=9, batch_size=11, debug="smoke")
    assert trainer.state is state and int(state.step) == 0 and int(result.state.step) == 2
    assert files(tmp_path) == [] and notes.written == ["notes.txt"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "it began anew; going on from the trainer's state was not tried" in printed


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_touched(tmp_path: Path) -> None:
    trainer = ft.Trainer(MODEL, SPEC, workdir=tmp_path, verbose=False)
    trainer.fit(DATA, steps=2, batch_size=11)
    state, before = trainer.state, {p: (tmp_path / p).stat() for p in files(tmp_path)}
    slots = bits(state.opt_state)
    own = tmp_path / "own"
    trainer.hooks = (ft.SaveEvery(directory=own), ft.TensorBoard(own))
    result = trainer.fit(DATA, steps=2, batch_size=11, debug="smoke")
    assert int(result.state.step) == 2 and not own.exists()  # it began anew
    assert trainer.state is state
    assert bits(state.opt_state) == slots
    after = {p: (tmp_path / p).stat() for p in files(tmp_path)}
    assert {p: s.st_mtime for p, s in after.items() if (tmp_path / p).is_file()} == {
        p: s.st_mtime for p, s in before.items() if (tmp_path / p).is_file()
    }


@pytest.mark.slow
def test_a_checkpoint_that_is_not_gone_on_from_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ft.Trainer(MODEL, SPEC, workdir=tmp_path, verbose=False).fit(DATA, steps=2, batch_size=11)
    ft.Trainer(MODEL, SPEC, workdir=tmp_path).fit(DATA, batch_size=11, debug="smoke")
    saved = ft.checkpoint.latest(tmp_path / "checkpoints")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"going on from {saved} was not tried" in printed


def test_the_hurried_phases_have_the_ages_of_two_updates_each() -> None:
    rules = [
        ft.Freeze("layers_0/kernel", until=30, rewarm=7),
        ft.Freeze("layers_0/bias", start=30, until=70, slots="keep"),
    ]
    batch = {key: value[:4] for key, value in DATA.items()}
    recipe = make_recipe(MODEL, SPEC.replace(freeze=rules), batch)
    phases = hurried(recipe, Horizon(100)).assignment.phases
    assert [(phase.start, phase.stop) for phase in phases] == [(0, 2), (2, 4), (4, None)]
    kernel, bias = ("layers_0", "kernel"), ("layers_0", "bias")
    assert phases[1].trained[kernel] == (0, 2, 7)  # age, thawed, rewarm
    assert phases[2].trained[kernel].age == 2
    assert phases[2].trained[bias] == (2, 4, 0)  # it kept the slots of phase 0
    assert phases[2].trained[("layers_2", "bias")].age == 4
    reached = hurried(recipe, Horizon(60)).assignment.phases
    assert [(phase.start, phase.stop) for phase in reached] == [(0, 2), (2, None)]


def test_iterables_work_and_iterators_are_refused() -> None:
    rows = [{key: value[i : i + 4] for key, value in DATA.items()} for i in (0, 4, 8, 12)]
    taken = []

    def batches() -> Any:
        for batch in rows:
            taken.append(1)
            yield batch

    trainer = ft.Trainer(MODEL, SPEC, verbose=False)
    result = trainer.fit(batches, epochs=5, debug="smoke")
    assert int(result.state.step) == 2 and len(taken) <= 8
    source = iter(rows)
    refused(lambda: trainer.fit(source, debug="smoke"), DataError, "can be iterated once only")
    assert next(source) is rows[0]
    trainer.hooks = (ft.Evaluate(source, every=None),)
    refused(lambda: trainer.fit(DATA, debug="smoke"), DataError, "would use it up")
    assert next(source) is rows[1]


@pytest.mark.slow
def test_what_the_run_would_meet_is_met(tmp_path: Path) -> None:
    class Fails(ft.Hook):
        def on_last_step(self, run: Any) -> None:
            raise OSError("no room")

    trainer = ft.Trainer(MODEL, SPEC, hooks=[Fails()], workdir=tmp_path, verbose=False)
    with pytest.raises(OSError, match="no room"):
        trainer.fit(DATA, epochs=100, batch_size=4, debug="smoke")
    assert files(tmp_path) == []
    wrong = {**DATA, "label": DATA["label"] + 1}
    with pytest.raises(ft.FlaxtrainError, match="label 3 is out of range"):
        ft.Trainer(MODEL, SPEC, verbose=False).fit(DATA, eval_ds=wrong, debug="smoke")


@pytest.mark.slow
def test_an_array_that_is_not_restored_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flaxtrain import checkpoint

    restore = checkpoint.restore

    def changed(*args: Any, **kwargs: Any) -> Any:
        state = restore(*args, **kwargs)
        return state.replace(step=state.step + 1)

    monkeypatch.setattr(checkpoint, "restore", changed)
    trainer = ft.Trainer(MODEL, SPEC, workdir=tmp_path, verbose=False)
    refused(
        lambda: trainer.fit(DATA, batch_size=11, debug="smoke"),
        ft.errors.DebugError,
        "step is not restored as it was saved",
    )


def test_an_error_is_not_hidden_by_what_was_left_in_a_new_workdir(tmp_path: Path) -> None:
    workdir = tmp_path / "new" / "run"
    with pytest.raises(KeyError, match="the real one"), scratch(workdir) as directory:
        assert directory.parent == workdir
        (workdir / "left.txt").write_text("by a hook")
        raise KeyError("the real one")
    assert files(tmp_path) == ["new", "new/run", "new/run/left.txt"]


def test_an_unknown_mode_and_wrong_lengths_are_refused() -> None:
    trainer = ft.Trainer(MODEL, SPEC, verbose=False)
    with pytest.raises(UnknownNameError, match="did you mean 'smoke'"):
        trainer.fit(DATA, debug="smok")
    refused(lambda: trainer.fit(DATA, steps=1, epochs=1, debug="smoke"), ArgumentError, "both")
