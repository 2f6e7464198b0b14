"""Averaged weights in the trainer: evaluation, curves, statistics, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from flaxtrain.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    NonFiniteError,
    StateError,
    UnknownNameError,
)
from flaxtrain.train import begin_average
from flaxtrain.tree import named_leaves
from tests.loop.test_resume import StopAt
from tests.runs import bits

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, (44, 4)).astype(np.float32)
DATA = {"x": X, "label": (X[:, 0] > X[:, 1]).astype(np.int32)}
EPS = 1e-5


class Net(nn.Module):
    """Dense, BatchNorm, Dense."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(not train, epsilon=EPS, name="norm")(nn.Dense(5, name="body")(x))
        return nn.Dense(2, name="head")(nn.relu(x))


def batches() -> Any:
    """Four batches of 12 rows; the last one has 8."""
    return ft.data.batches(DATA, 12, shuffle=False)


def trainer(
    ema: Any,
    workdir: Path | None = None,
    hooks: tuple[ft.Hook, ...] = (),
    precision: Any = "f32",
) -> Any:
    spec = ft.OptSpec("adam", learning_rate=0.05, ema=ema)
    options = {"workdir": workdir, "hooks": hooks, "precision": precision}
    return ft.Trainer(Net(), spec, log_every=3, verbose=False, **options)


class Fitted:
    """A run of ten updates whose average begins at the sixth, with curves."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.trainer = trainer(ft.Swa("60%", every=2), workdir)
        self.result = self.trainer.fit(batches(), steps=10, eval_ds=batches(), eval_every=3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return Fitted(tmp_path_factory.mktemp("run"))


def test_evaluation_reports_both_once_the_average_has_begun(fitted: Fitted) -> None:
    rows = fitted.result.history.val
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert set(rows[0]) == {"step", "loss", "accuracy"}
    for row in rows[1:]:
        assert list(row) == ["step", "loss", "accuracy", "loss/ema", "accuracy/ema"]
    assert rows[1]["loss"] == rows[1]["loss/ema"]  # an average of one
    assert rows[-1]["loss"] != rows[-1]["loss/ema"]
    assert fitted.trainer.compilations == {"train": 1, "eval": 1}


def test_both_curves_are_in_tensorboard(fitted: Fitted) -> None:
    events = EventAccumulator(str(fitted.workdir / "val"))
    events.Reload()
    for name in ("loss", "loss/ema", "accuracy", "accuracy/ema"):
        curve = {event.step: event.value for event in events.Scalars(name)}
        expected = {row["step"]: row[name] for row in fitted.result.history.val if name in row}
        assert curve == expected
        assert min(curve) == (6 if name.endswith("ema") else 3)


def test_the_weights_to_evaluate_are_chosen_and_training_weights_stay(fitted: Fitted) -> None:
    before, own = bits(fitted.trainer.state), fitted.trainer
    raw = own.evaluate(batches())
    averaged = own.evaluate(batches(), weights="ema")
    both = own.evaluate(batches(), weights="both")
    assert both == {**raw, **{f"{name}/ema": value for name, value in averaged.items()}}
    assert own.evaluate(batches(), weights=None) == both  # as in fit: all that there are
    outputs = own.predict(batches(), weights="ema")
    assert bits(own.state) == before
    # The same numbers as of a trainer that has the averaged weights as its own.
    swapped = trainer(None)
    swapped.fit(batches(), steps=1)
    assert set(swapped.evaluate(batches(), weights=None)) == {"loss", "accuracy"}
    swapped.state = ft.eval_state(own.state)
    assert swapped.evaluate(batches()) == averaged
    np.testing.assert_array_equal(swapped.predict(batches()), outputs)
    assert np.abs(outputs - own.predict(batches())).max() > 0
    assert own.compilations["eval"] == 1


def test_both_weights_are_evaluated_in_one_pass_over_the_data(fitted: Fitted) -> None:
    once = ({name: leaf[i : i + 12] for name, leaf in DATA.items()} for i in range(0, 36, 12))
    found = fitted.trainer.evaluate(once, weights="both")
    assert found["loss"] != found["loss/ema"]


def normalised(x: np.ndarray, params: Any, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    """The model in evaluation, in NumPy."""
    hidden = x.astype(np.float64) @ params["body"]["kernel"] + params["body"]["bias"]
    norm = (hidden - mean) / np.sqrt(var + EPS) * params["norm"]["scale"]
    return (
        np.maximum(norm + params["norm"]["bias"], 0) @ params["head"]["kernel"]
        + (params["head"]["bias"])
    )


def test_batch_statistics_of_the_averaged_weights_are_those_that_numpy_forms(
    fitted: Fitted,
) -> None:
    own, state = fitted.trainer, fitted.trainer.state
    before, old = bits(state), own.evaluate(batches(), weights="both")
    own.recompute_batch_stats(batches())
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ft.eval_params(own.state))
    hidden = X.astype(np.float64) @ params["body"]["kernel"] + params["body"]["bias"]
    mean, var = hidden.mean(0), hidden.var(0)
    stats = ft.eval_state(own.state).collections["batch_stats"]["norm"]
    # float32; a variance is a difference of two means.
    np.testing.assert_allclose(stats["mean"], mean, rtol=0, atol=1e-5 * np.abs(mean).max())
    np.testing.assert_allclose(stats["var"], var, rtol=0, atol=1e-5 * np.abs(var).max())
    logits = normalised(X, params, mean, var)
    outputs = own.predict(batches(), weights="ema")
    np.testing.assert_allclose(outputs, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    new = own.evaluate(batches(), weights="both")
    accuracy = np.mean(np.argmax(logits, 1) == DATA["label"])
    assert new["accuracy/ema"] == pytest.approx(accuracy, abs=1e-6)
    assert new["loss/ema"] != old["loss/ema"]
    # Nothing else has changed, and training can go on with what is compiled.
    assert {name: new[name] for name in ("loss", "accuracy")} == {
        name: old[name] for name in ("loss", "accuracy")
    }
    after = bits(own.state)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"ema/collections/batch_stats/norm/{kind}" for kind in ("mean", "var")}
    assert jax.tree.structure(own.state) == jax.tree.structure(state)
    forms = [[jax.typeof(leaf) for leaf in jax.tree.leaves(s)] for s in (own.state, state)]
    assert forms[0] == forms[1]
    own.state = state


def test_statistics_of_some_batches_are_those_of_the_first_ones(fitted: Fitted) -> None:
    own, state = fitted.trainer, fitted.trainer.state
    own.recompute_batch_stats(batches(), 2)
    two = bits(own.state.ema.collections)
    own.state = state
    first = ft.data.batches({n: v[:24] for n, v in DATA.items()}, 12, shuffle=False)
    own.recompute_batch_stats(first)
    # Padding is not ruled out in the one, and is in the other: another program.
    for name, leaf in named_leaves(own.state.ema.collections):
        found = np.frombuffer(two[name], np.float32)
        np.testing.assert_allclose(found, leaf, rtol=1e-5)
    own.state = state


RULES = [
    ft.Ema(0.9, every=2),
    pytest.param(ft.Swa(4), marks=pytest.mark.slow),
    pytest.param(ft.Lookahead(3), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_average_of_a_continued_run_is_the_same_to_the_last_bit(
    rule: Any, tmp_path: Path
) -> None:
    whole = trainer(rule)
    whole.fit(batches(), steps=8)
    trainer(rule, tmp_path, (StopAt(5),)).fit(batches(), steps=8)
    second = trainer(rule, tmp_path)
    second.fit(batches(), steps=8)
    assert bits(second.state) == bits(whole.state)
    stored = ft.checkpoint.restore(tmp_path / "checkpoints" / "8")
    assert set(stored["ema"]) >= {"params", "count"}
    kernel = stored["ema"]["params"]["head"]["kernel"]
    np.testing.assert_array_equal(kernel, second.state.ema.params["head"]["kernel"])


class Notes(ft.Hook):
    def on_start(self, run: Any) -> None:
        self.found = run.announcements
        self.first = jax.device_get((run.state.ema.params, run.state.exact_params))


def continued(before: Any, after: Any, workdir: Path) -> tuple[Notes, Any]:
    trainer(before, workdir, (StopAt(5),)).fit(batches(), steps=8)
    return resumed(after, workdir)


def resumed(after: Any, workdir: Path, precision: Any = "f32") -> tuple[Notes, Any]:
    notes = Notes()
    own = trainer(after, workdir, (notes,), precision)
    own.fit(batches(), steps=8)
    return notes, own.state


def test_an_average_that_the_checkpoint_lacks_begins_with_its_weights(tmp_path: Path) -> None:
    copies = ft.Precision("p=bf16,c=f32", update="master")
    trainer(None, tmp_path, (StopAt(5),), copies).fit(batches(), steps=8)
    with pytest.raises(CheckpointError, match="another optimizer spec"):
        resumed(ft.Lookahead(3), tmp_path, copies)  # training depends on it
    notes, state = resumed(0.9, tmp_path, copies)
    told = "the average Ema(0.9) of the weights begins with those of the checkpoint"
    assert told in notes.found
    # Those that the optimizer works on, before they are rounded to 16 bits.
    jax.tree.map(np.testing.assert_array_equal, *notes.first)
    assert int(state.ema.count) == 3


def test_an_average_that_is_not_wanted_any_more_is_dropped(tmp_path: Path) -> None:
    notes, state = continued(ft.Ema(0.9), None, tmp_path)
    assert "the average Ema(0.9) of the weights does not go on" in notes.found
    assert jax.tree.leaves(state.ema) == []


@pytest.mark.slow
def test_an_average_with_another_decay_goes_on(tmp_path: Path) -> None:
    notes, state = continued(ft.Ema(0.9), ft.Ema(0.5), tmp_path)
    assert "ema was Ema(0.9) and is Ema(0.5) from here on" in notes.found
    assert int(state.ema.count) == 8


@pytest.mark.slow
def test_an_average_of_another_kind_begins_anew(tmp_path: Path) -> None:
    notes, state = continued(ft.Ema(0.9), ft.Swa(1), tmp_path)
    assert "the average Ema(0.9) of the weights does not go on" in notes.found
    assert int(state.ema.count) == 3


def test_the_plan_says_which_average_is_kept_and_what_it_takes() -> None:
    plan = trainer(ft.Swa("60%")).plan(batches(), steps=10)
    assert "step           weights averaged: mean from step 6 on, every update" in str(plan)
    # 4 * 5 + 5 + 10 + 5 * 2 + 2 parameters, 10 statistics and a count.
    assert plan.memory["average"] == 4 * (47 + 10 + 1)
    assert plan.warnings == ()
    plan = trainer(ft.Swa(11)).plan(batches(), steps=10)
    assert plan.warnings == (
        "Swa(11) would average weights after update 11 for the first time, and the run has 10",
    )
    plan = trainer(None).plan(batches(), steps=10)
    assert plan.options == "" and "average" not in plan.memory


NAN = {**DATA, "x": np.where(np.arange(176).reshape(44, 4) == 90, np.nan, X)}

WRONG: dict[str, tuple[Any, Callable[[Any], Any], type[Exception], str]] = {
    "an average that is not kept": (
        None,
        lambda own: own.evaluate(batches(), weights="ema"),
        StateError,
        "no average of the weights is kept",
    ),
    "both, and there is one": (
        None,
        lambda own: own.evaluate(batches(), weights="both"),
        StateError,
        "OptSpec(ema=0.999)",
    ),
    "a prediction with an average that is not kept": (
        None,
        lambda own: own.predict(batches(), weights="ema"),
        StateError,
        "predict(weights='ema')",
    ),
    "an average that has not begun": (
        ft.Swa(15),
        lambda own: own.evaluate(batches(), weights="ema"),
        StateError,
        "the average Swa(15) has not begun after 10 updates",
    ),
    "misspelt weights": (
        ft.Ema(0.9),
        lambda own: own.evaluate(batches(), weights="emma"),
        UnknownNameError,
        "did you mean 'ema'?",
    ),
    "a prediction with both": (
        ft.Ema(0.9),
        lambda own: own.predict(batches(), weights="both"),
        UnknownNameError,
        "unknown weights 'both'",
    ),
    "statistics of no batch": (
        ft.Ema(0.9),
        lambda own: own.recompute_batch_stats(batches(), 0),
        ArgumentError,
        "n_batches=0 is too small",
    ),
    "statistics of more batches than there are": (
        ft.Ema(0.9),
        lambda own: own.recompute_batch_stats(batches(), 5),
        DataError,
        "there are 4 batches, and 5 are asked for",
    ),
    "statistics for lookahead": (
        ft.Lookahead(),
        lambda own: own.recompute_batch_stats(batches()),
        StateError,
        "Lookahead() is evaluated with the statistics of training",
    ),
    "statistics without an average": (
        None,
        lambda own: own.recompute_batch_stats(batches()),
        StateError,
        "no average of the weights is kept",
    ),
    "statistics that are not finite": (
        ft.Ema(0.9),
        lambda own: own.recompute_batch_stats(ft.data.batches(NAN, 12, shuffle=False)),
        NonFiniteError,
        "a statistic became NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_refused_and_leaves_the_state(name: str, fitted: Fitted) -> None:
    rule, use, kind, found = WRONG[name]
    own, state = fitted.trainer, fitted.trainer.state
    average = begin_average(rule, state.params, state.collections)
    own.state = state.replace(ema=average)
    before = bits(own.state)
    with pytest.raises(kind) as error:
        use(own)
    assert found in str(error.value)
    assert bits(own.state) == before
    own.state = state
