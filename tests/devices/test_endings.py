"""How runs on several devices end, go on and are looked into: as on one device."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clu.metrics
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import errors
from tests.devices.runs import LAYOUTS, Net, assert_close, data, numbers_of
from tests.runs import bits, readable
from tests.train.test_needs import asking

BAR = 2e-5  # float32, about 200 roundings: other sums over rows, in up to eight steps
ROWS = 12  # eight devices divide neither 12 nor 6
TWO = ("data and fsdp", "pmap")
ONE_IS_SLOW = (TWO[0], pytest.param(TWO[1], marks=pytest.mark.slow))
DATA = data(dtype="float32")


def trainer(spec: ft.OptSpec | None = None, model: Any = None, **arguments: Any) -> ft.Trainer:
    spec = ft.OptSpec("sgd", learning_rate=0.1, momentum=0.9) if spec is None else spec
    arguments = {"log_every": 1, "verbose": False, **arguments}
    return ft.Trainer(Net() if model is None else model, spec, **arguments)


def batches(arrays: Any = DATA, rows: int = ROWS, shuffle: bool = True) -> Any:
    return ft.data.batches(arrays, rows, shuffle=shuffle, seed=3)


def kept(one: ft.Trainer) -> dict[str, bytes]:
    """Returns the bits of the state but for what a run that halts counts."""
    assert one.state is not None
    return bits((one.state.params, one.state.opt_state, one.state.collections, one.state.step))


# Bad steps.


class Root(nn.Module):
    """The square root of one column is NaN where that is negative."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(4, name="head")(nn.Dense(8, name="body")(x) + Sqrt(name="root")(x))


class Sqrt(nn.Module):
    """`[rows, columns] -> [rows, 8]`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.param("factor", nn.initializers.ones, (1, 8)) * jnp.sqrt(x[:, :1])


def rotten(value: float) -> dict[str, np.ndarray]:
    found = data(dtype="float32")
    found["x"][:, 0] = np.abs(found["x"][:, 0])
    found["x"][17, 0] = value
    return found


NUMBER = int(np.flatnonzero(batches(rotten(1.0)).order(0) == 17)[0]) // ROWS


def stopped(value: float, parts: int, workdir: Path, **arguments: Any) -> Any:
    one = trainer(
        ft.OptSpec("adam", learning_rate=1e-3, accumulate=parts),
        Root(),
        workdir=workdir,
        **arguments,
    )
    with pytest.raises(errors.NonFiniteError) as caught:
        one.fit(batches(rotten(value)), epochs=2)
    return one, caught.value


FAST = {(TWO[0], np.nan, 2), (TWO[1], -1.0, 1)}


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow])
        for case in itertools.product(TWO, (np.nan, -1.0), (1, 2))
    ],
)
def test_a_bad_step_ends_the_run_with_the_report_of_one_device(
    name: str, value: float, parts: int, tmp_path: Path
) -> None:
    _, expected = stopped(value, parts, tmp_path / "one")
    one, found = stopped(value, parts, tmp_path / "many", **LAYOUTS[name])
    assert str(found).replace("many", "one") == str(expected)
    assert f"batch {NUMBER} of the run" in str(found)
    assert ("example 17" if np.isnan(value) else "root") in str(found)
    # The state is the last good one, and the file has the rows as they were given.
    good = trainer(one.spec, Root(), **LAYOUTS[name])
    if NUMBER:
        good.fit(batches(rotten(value)), steps=NUMBER)
        assert kept(one) == kept(good)
    (path,) = (tmp_path / "many" / "bad_batches").glob("*.npz")
    batch, mask = ft.data.load_batch(path)
    rows = batches(rotten(value)).order(0)[NUMBER * ROWS : (NUMBER + 1) * ROWS]
    assert batch["x"].tobytes() == rotten(value)["x"][rows].tobytes()
    assert mask is not None and mask.tolist() == [True] * ROWS
    assert json.loads(path.with_suffix(".json").read_text())["examples"] == rows.tolist()
    assert str(ft.diagnose(one, None, batch, mask)) == str(found.diagnosis)


class StopsAt(ft.Hook):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_step(self, run: Any) -> None:
        if run.batches == self.batch:
            raise RuntimeError("the hook fails")


@pytest.mark.parametrize("name", TWO)
def test_a_run_that_is_interrupted_goes_on_as_if_it_had_not_been(name: str) -> None:
    one = trainer(hooks=[StopsAt(3)], **LAYOUTS[name])
    with pytest.raises(RuntimeError, match="the hook fails"):
        one.fit(batches(), steps=6)
    one.hooks = ()
    one.fit(batches(), steps=3)
    through = trainer(**LAYOUTS[name])
    through.fit(batches(), steps=6)
    assert bits(one.state) == bits(through.state)
    assert one.compilations["train"] == 1


# Checkpoints.


def test_a_checkpoint_of_fsdp_goes_on_anywhere(tmp_path: Path) -> None:
    spec = ft.OptSpec("adamw", learning_rate=1e-3, accumulate=2, ema=0.9)

    def run(name: str, workdir: Path | None, steps: int) -> ft.Trainer:
        hooks = [] if workdir is None else [ft.SaveEvery()]
        where = LAYOUTS.get(name, {})
        one = trainer(spec, workdir=workdir, hooks=hooks, **where)
        one.fit(batches(), steps=steps)
        return one

    run("fsdp", tmp_path / "fsdp", 4)
    through = run("fsdp", None, 8)
    expected = state_of(through)
    for name in ("fsdp", "one device", "tensor", "pmap"):
        workdir = shutil.copytree(tmp_path / "fsdp", tmp_path / f"by {name}")
        one = run(name, workdir, 8)
        assert_close(expected, state_of(one), BAR, BAR)
        if name == "fsdp":
            assert bits(one.state) == bits(through.state)
        assert one.compilations["train"] == 1


def state_of(one: ft.Trainer) -> dict[str, np.ndarray]:
    return {f"state/{name}": leaf for name, leaf in readable(one.state).items()}


# Features of a trainer, one by one.


def penalised(model: Any, batch: Any) -> Any:
    loss = ft.losses.softmax_cross_entropy_with_integer_labels(
        model(batch["x"]), batch["label"]
    )
    return loss.mean()


def generated() -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, 40, ROWS):
        yield {name: leaf[start : start + ROWS] for name, leaf in DATA.items()}


COLLECTION = clu.metrics.Collection.create(
    accuracy=clu.metrics.Accuracy,
    loss=clu.metrics.Average.from_output("loss"),
    deviation=clu.metrics.Std.from_output("loss"),
)
FROZEN = ft.OptSpec("sgd", learning_rate=0.1, freeze=["body/**", "norm/**"])
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cached features": ({"spec": FROZEN}, {"cache_frozen": True}),
    "adapters": ({"adapters": ft.LoRA("mid/kernel | body/kernel", rank=2)}, {}),
    "metrics of clu": ({"metrics": COLLECTION}, {}),
    "value_fn": ({"spec": ft.OptSpec(asking())}, {}),
    "a generator": ({}, {"ds": generated}),
    "four steps a call": ({"steps_per_call": 4, "log_every": 4}, {}),
}


@functools.cache
def on_one_device(case: str) -> dict[str, np.ndarray]:
    return fitted(case)[1]


def fitted(case: str, **where: Any) -> tuple[ft.Trainer, dict[str, np.ndarray]]:
    made, called = CASES[case]
    one = trainer(**{**made, **where})
    result = one.fit(
        called.get("ds", batches()), steps=8, **{k: v for k, v in called.items() if k != "ds"}
    )
    return one, numbers_of(one, result)


SLOW = ("adapters", "metrics of clu", "value_fn")


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(
            case, name, marks=[pytest.mark.slow] if case in SLOW and name == TWO[1] else []
        )
        for case, name in itertools.product(CASES, TWO)
    ],
)
def test_what_a_trainer_can_do_it_does_on_all_devices(case: str, name: str) -> None:
    one, found = fitted(case, **LAYOUTS[name])
    # The square of a difference whose true value is zero is noise.
    noise = "state/opt_state/slots/squares"
    assert abs(found.pop(noise, 0.0)) < 1e-6
    expected = {key: number for key, number in on_one_device(case).items() if key != noise}
    assert_close(expected, found, BAR, BAR)
    assert one.compilations["train"] == 1


@pytest.mark.parametrize("name", ONE_IS_SLOW)
def test_statistics_are_formed_anew_over_the_rows_alone(name: str) -> None:
    def formed(**where: Any) -> dict[str, np.ndarray]:
        one = trainer(ft.OptSpec("sgd", learning_rate=0.1, ema=ft.Swa(start=2)), **where)
        one.fit(batches(), steps=4)
        one.recompute_batch_stats(batches())
        return state_of(one)

    assert_close(formed(), formed(**LAYOUTS[name]), BAR, BAR)


@pytest.mark.parametrize("name", TWO)
def test_a_loss_that_is_one_number_needs_rows_that_divide(name: str) -> None:
    one = trainer(loss=penalised, **LAYOUTS[name])
    with pytest.raises(errors.LossError) as caught:
        one.fit(batches(rows=20), steps=2)
    assert "8 devices" in str(caught.value) and "multiple of 8" in str(caught.value)
    found = one.fit(batches(data(32, dtype="float32"), 16), steps=4)
    alone = trainer(loss=penalised)
    expected = alone.fit(batches(data(32, dtype="float32"), 16), steps=4)
    assert_close(numbers_of(alone, expected), numbers_of(one, found), BAR, BAR)


# Looking into a run.


@pytest.mark.parametrize("name", ONE_IS_SLOW)
def test_the_range_test_has_the_losses_of_one_device(name: str) -> None:
    alone, one = trainer(), trainer(**LAYOUTS[name])
    expected = alone.find_lr(batches(), min=1e-3, max=0.1, steps=10)
    found = one.find_lr(batches(), min=1e-3, max=0.1, steps=10)
    assert np.allclose(found.losses, expected.losses, rtol=BAR)
    assert found.suggestion == expected.suggestion and one.state is None


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_a_check_finds_what_it_finds_on_one_device(name: str) -> None:
    expected = trainer().check(batches())
    found = trainer(**LAYOUTS[name]).check(batches())
    assert [entry.check for entry in found.findings] == [e.check for e in expected.findings]


@pytest.mark.parametrize("name", ONE_IS_SLOW)
@pytest.mark.parametrize(
    "mode",
    ["smoke", *(pytest.param(m, marks=pytest.mark.slow) for m in ("overfit", "checkify"))],
)
def test_debugging_runs_work_and_leave_the_trainer_as_it_is(mode: str, name: str) -> None:
    one = trainer(**LAYOUTS[name])
    one.fit(batches(), steps=2)
    before = bits(one.state)
    one.fit(batches(), steps=200, debug=mode)
    assert bits(one.state) == before
    one.fit(batches(), steps=2)
    through = trainer(**LAYOUTS[name])
    through.fit(batches(), steps=4)
    assert bits(one.state) == bits(through.state)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"mesh": {"data": 3}}, "3 in all do not make up 8 devices"),
        ({"mesh": {"data": 2, "fsdp": 4}, "backend": "pmap"}, "mesh axis 'fsdp'"),
        ({"mesh": {"data": 4, "model": 2}, "backend": "pmap"}, "mesh axis 'model'"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        trainer(**arguments)
    assert found in caught.value.found and caught.value.fix
