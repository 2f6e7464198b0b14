"""What a run leaves for TensorBoard, read back by TensorBoard's own reader and its server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flaxtrain as ft
from flaxtrain.tree import global_norm
from tests.models import MLP

LOG_EVERY, STEPS = 3, 20
SPEC = ft.OptSpec(
    "adamw",
    ft.schedules.warmup_cosine_decay_schedule(0.0, 3e-3, "10%", "100%"),
    weight_decay=0.05,
)


class Finished(NamedTuple):
    workdir: Path
    trainer: ft.Trainer
    result: ft.FitResult
    param_norms: dict[int, float]


class ParamNorms(ft.Hook):
    """Notes the norm of the parameters before each update, computed apart from the step."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_start(self, run: Any) -> None:
        self.on_step(run)

    def on_step(self, run: Any) -> None:
        self.found[run.batches + 1] = float(global_norm(run.state.params))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    workdir, norms = tmp_path_factory.mktemp("run"), ParamNorms()
    train, val = ft.data.digits()
    train = ft.data.batches({k: v[:300] for k, v in train.items()}, 64, shuffle=True)
    val = {k: v[:100] for k, v in val.items()}
    trainer = ft.Trainer(
        MLP((32, 10)), SPEC, workdir=workdir, log_every=LOG_EVERY, hooks=[norms], verbose=False
    )
    result = trainer.fit(train, steps=STEPS, eval_ds=ft.data.batches(val, 64))
    return Finished(workdir, trainer, result, norms.found)


def events(run: Finished, name: str) -> EventAccumulator:
    found = EventAccumulator(str(run.workdir / name))
    found.Reload()
    return found


def curve(run: Finished, name: str, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events(run, name).Scalars(tag)}


def text(run: Finished, tag: str) -> str:
    (event,) = events(run, "train").Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_train_and_val_use_the_same_tags_for_loss_and_metrics(run: Finished) -> None:
    train, val = (set(events(run, name).Tags()["scalars"]) for name in ("train", "val"))
    assert val == {"loss", "accuracy"}
    assert train == val | {
        "learning_rate",
        "weight_decay",
        "grad_norm",
        "param_norm",
        "update_norm",
        "steps_per_sec",
        "examples_per_sec",
        "data_wait_share",
    }


@pytest.mark.parametrize("name", ["train", "val"])
def test_every_logged_row_of_the_history_is_in_the_files(run: Finished, name: str) -> None:
    rows = getattr(run.result.history, name)
    steps = [3, 6, 9, 12, 15, 18, 20] if name == "train" else [5, 10, 15, 20]
    assert [row["step"] for row in rows] == steps
    for tag in events(run, name).Tags()["scalars"]:
        written = curve(run, name, tag)
        expected = {row["step"]: np.float32(row[tag]) for row in rows if tag in row}
        assert written == expected


def test_the_learning_rate_is_the_schedule_at_the_update_that_was_applied(
    run: Finished,
) -> None:
    rates = curve(run, "train", "learning_rate")
    schedule: Any = run.trainer.recipe.spec.learning_rate  # type: ignore[union-attr]
    assert set(range(LOG_EVERY, STEPS, LOG_EVERY)) <= rates.keys()
    for step, rate in rates.items():
        assert rate == pytest.approx(float(schedule(step - 1)), rel=1e-6)  # float32
    assert max(rates.values()) == pytest.approx(3e-3, rel=1e-6)  # step 3 has count 2, the peak


def test_norms_are_those_of_the_update_that_was_applied(run: Finished) -> None:
    norms = curve(run, "train", "param_norm")
    for step, norm in norms.items():
        # Another program forms the same float32 sums in another order.
        assert norm == pytest.approx(run.param_norms[step], rel=1e-5)
    gradients, updates = curve(run, "train", "grad_norm"), curve(run, "train", "update_norm")
    assert all(value > 0 for value in [*gradients.values(), *updates.values()])
    # Adam's updates are as large as the learning rate says, whatever the gradient's size.
    rates = curve(run, "train", "learning_rate")
    size = np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(run.result.state.params)))
    assert all(updates[step] < 3 * rate * size for step, rate in rates.items())


def test_throughput_is_positive_and_consistent(run: Finished) -> None:
    steps, examples, waits = (
        curve(run, "train", tag)
        for tag in ("steps_per_sec", "examples_per_sec", "data_wait_share")
    )
    assert steps.keys() == examples.keys() == waits.keys() and steps
    for step, rate in steps.items():
        assert rate > 0 and 0 <= waits[step] <= 1
        assert 0 < examples[step] / rate <= 64  # the last batch of an epoch is smaller


def test_val_curves_are_what_evaluate_returns(run: Finished) -> None:
    _, val = ft.data.digits()
    metrics = run.trainer.evaluate({k: v[:100] for k, v in val.items()}, batch_size=64)
    for tag, value in metrics.items():
        assert curve(run, "val", tag)[STEPS] == np.float32(value)


def test_the_parameter_table_and_the_resolved_spec_are_there_as_text(run: Finished) -> None:
    table = text(run, "parameters")
    for piece in ("`Dense_0/kernel`", "64 x 32", "| kernel |", "2,410 values"):
        assert piece in table
    spec = json.loads(text(run, "spec").removeprefix("```json\n").removesuffix("\n```"))
    assert ft.OptSpec.from_dict(spec) == run.trainer.recipe.spec  # type: ignore[union-attr]
    assert spec["learning_rate"]["warmup_steps"] == 2
    assert spec["learning_rate"]["decay_steps"] == STEPS


@pytest.fixture
def server(run: Finished, tmp_path: Path) -> Iterator[str]:
    """Starts TensorBoard on a free port of the loopback device; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run.workdir)]
    command += ["--host", "127.0.0.1", "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield wait_for(lambda: re.search(r"http://[\d.:]+/", (tmp_path / "log").read_text()))[0]
    finally:
        process.terminate()
        process.wait(10)


def wait_for(found: Any, seconds: float = 60.0) -> Any:
    """Returns what `found` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = found()
        if result:
            return result
        time.sleep(0.1)
    raise AssertionError(f"nothing came in {seconds} seconds")


def fetch(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as response:
        return json.load(response)


def test_a_tensorboard_server_lists_both_runs_with_their_scalars(
    run: Finished, server: str
) -> None:
    wait_for(lambda: set(fetch(server + "data/runs")) == {"train", "val"})
    assert fetch(server + "data/plugins_listing")["scalars"]["enabled"]
    tags = fetch(server + "data/plugin/scalars/tags")
    assert {"loss", "accuracy"} <= tags["train"].keys() & tags["val"].keys()
    points = fetch(server + "data/plugin/scalars/scalars?run=val&tag=accuracy")
    assert {step: value for _, step, value in points} == curve(run, "val", "accuracy")
