"""What a plan says about devices, where there is one; with eight: tests/devices."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ArgumentError
from flaxtrain.loop.plan_devices import ONE_STEP_ON_ONE_DEVICE, PlannedDevices
from flaxtrain.loop.steps_per_call import CallForm
from tests.models import CNN

DATA = {"x": np.ones((60, 8), "float32"), "label": np.zeros(60, "int32")}
IMAGES = {"x": np.ones((60, 8, 8, 3), "float32"), "label": np.zeros(60, "int32")}


def plan_of(
    data: Any = DATA, model: nn.Module | None = None, ema: float | None = None, **arguments: Any
) -> ft.Plan:
    spec = ft.OptSpec("adam", 1e-3, ema=ema)
    trainer = ft.Trainer(model or nn.Dense(4), spec, verbose=False, **arguments)
    return trainer.plan(data, batch_size=20, epochs=1)


def words(plan: ft.Plan) -> dict[str, str]:
    return dict(plan.devices.lines())


def test_one_device_is_nothing_to_talk_about() -> None:
    plan = plan_of()
    assert plan.devices == ONE_STEP_ON_ONE_DEVICE
    assert words(plan) == {}
    assert not any(word in plan.text() for word in ("devices", "on each device", "calls"))


def test_a_mesh_of_one_device_holds_everything() -> None:
    plan = plan_of(mesh={"data": 1}, sharding="fsdp", ema=0.9)
    found = plan.devices
    assert (found.mesh, found.rows, found.padding, found.left_whole) == ({"data": 1}, 20, 0, {})
    assert found.memory == plan.memory
    assert list(found.memory) == ["parameters", "slots", "collections", "average", "total"]
    assert "devices        mesh data=1 (cpu); sharding fsdp; jit\n" in plan.text()
    assert "- **on each device** 20 rows of a batch; parameters 144 B, " in plan.markdown()
    assert plan.to_dict()["devices"]["memory"] == plan.memory


def test_pmap_and_a_sharding_with_rules_are_named() -> None:
    assert words(plan_of(backend="pmap"))["devices"].endswith("sharding replicated; pmap")
    rules = ft.Sharding("zero1", rules=[("kernel", (None, "data"))])
    line = words(plan_of(mesh={"data": 1}, sharding=rules))["devices"]
    assert f"; sharding {rules!r}; jit" in line


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (1, None),
        (10, "up to 10 steps in one call"),
        ("auto", "as many steps in one call as suit the time of a step"),
    ],
)
def test_steps_per_call_are_told_with_or_without_a_mesh(asked: Any, line: str | None) -> None:
    assert words(plan_of(steps_per_call=asked)).get("calls") == line
    assert words(plan_of(steps_per_call=asked, mesh={"data": 1})).get("calls") == line


def test_steps_that_are_written_out_are_told_and_too_many_refused_as_by_fit() -> None:
    plan = plan_of(IMAGES, CNN(), steps_per_call=8)
    assert words(plan)["calls"] == "up to 8 steps in one call, written out"
    with pytest.raises(ArgumentError, match="pass at most 64"):
        plan_of(IMAGES, CNN(), steps_per_call=100, log_every=100)


def test_a_plan_decides_nothing_about_calls_and_says_what_was_settled() -> None:
    trainer = ft.Trainer(nn.Dense(4), ft.OptSpec("sgd", 0.1), steps_per_call=5, verbose=False)
    calls = trainer._programs.steps_per_call
    trainer.plan(DATA, epochs=1)
    assert calls.call_form is None
    calls.call_form = CallForm(4, "loop")  # as a run that is continued has it
    assert trainer.plan(DATA, epochs=1).devices.steps_per_call == 4


def test_what_a_rule_does_not_fit_is_refused_before_the_run() -> None:
    rules = ft.Sharding(rules=[("kernel", ("data",))])
    with pytest.raises(ft.errors.ParameterError, match="1 axis for the shape"):
        plan_of(mesh={"data": 1}, sharding=rules)


def test_processes_are_counted_and_names_are_cut_short() -> None:
    found = PlannedDevices(
        mesh={"data": 4},
        kind="cpu",
        processes=2,
        rows=3,
        padding=5,
        memory={"total": 2048},
        left_whole={"below the threshold": ("a", "b", "c", "d")},
    )
    assert dict(found.lines()) == {
        "devices": "mesh data=4 (cpu); sharding replicated; jit; 2 processes",
        "on each device": "3 rows of a batch (of all, 5 are padding); total 2.0 KiB",
        "left whole": "4 parameters (a, b, c and 1 more): below the threshold",
    }
