"""What a trainer is told about devices, and what is refused."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import flaxtrain as ft
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.parallel import Sharding, make_mesh
from flaxtrain.parallel.devices import Devices
from flaxtrain.parallel.engine import ONE_DEVICE
from flaxtrain.params import param_facts
from tests.parallel.pods import pod

ONE = jax.devices()[:1]
SPEC = ft.OptSpec("sgd", learning_rate=0.1)


def made(**arguments: Any) -> ft.Trainer:
    return ft.Trainer(nn.Dense(2), SPEC, verbose=False, **arguments)


def test_without_a_mesh_it_is_the_default_device() -> None:
    devices = Devices.of()
    assert devices.mesh is None and devices.multiple == 1
    facts = param_facts(nn.Dense(2), np.ones((1, 3), "float32"))
    assert devices.engine(facts) is ONE_DEVICE


def test_a_mesh_of_ones_own_is_taken_and_pmap_has_one_of_its_own() -> None:
    mesh = make_mesh({"data": 1}, ONE)
    assert Devices.of(mesh).mesh is mesh
    assert Devices.of(mesh, "zero1").sharding == Sharding("zero1")
    own = Devices.of(backend="pmap").mesh
    assert own is not None and own.axis_names == ("data",)


COUNT = jax.device_count()
REFUSED: dict[str, tuple[dict[str, Any], type[FlaxtrainError], str, str]] = {
    "more devices than there are": (
        {"mesh": {"data": 3 * COUNT}},
        ArgumentError,
        f"{3 * COUNT} in all do not",
        "devices",
    ),
    "a sharding without a mesh": (
        {"sharding": "fsdp"},
        ArgumentError,
        "sharding='fsdp' is given, and no mesh",
        'mesh={"data": -1}',
    ),
    "an unknown sharding": (
        {"mesh": {"data": -1}, "sharding": "fsdpp"},
        UnknownNameError,
        "fsdpp",
        "'fsdp'",
    ),
    "an unknown backend": ({"backend": "pmapp"}, UnknownNameError, "pmapp", "'pmap'"),
    "a sharding by pmap": (
        {"backend": "pmap", "sharding": "zero1"},
        ArgumentError,
        "data parallel only",
        "leave backend out",
    ),
    "rules by pmap": (
        {"backend": "pmap", "sharding": Sharding(rules=[("kernel", (None, "data"))])},
        ArgumentError,
        "data parallel only",
        "leave backend out",
    ),
    "an axis that XLA does not decide along": (
        {"mesh": Mesh(np.array(ONE), ("data",), axis_types=(AxisType.Explicit,))},
        ArgumentError,
        "'data' is of type Explicit",
        "Auto",
    ),
    "no steps to a call": ({"steps_per_call": 0}, ArgumentError, "steps_per_call", "1"),
    "more steps than lie between log points": (
        {"steps_per_call": 64},
        ArgumentError,
        "steps_per_call=64, but log_every=50",
        "at most 50",
    ),
    "a word for a number of steps": (
        {"steps_per_call": "autoo"},
        UnknownNameError,
        "autoo",
        "'auto'",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_can_not_be_is_refused_when_the_trainer_is_made(case: str) -> None:
    arguments, kind, found, fix = REFUSED[case]
    with pytest.raises(kind) as error:
        made(**arguments)
    assert found in str(error.value) and fix in str(error.value.fix)
    assert "Trainer" in str(error.value.where) or "mesh" in str(error.value.where)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "arguments",
    [
        {"mesh": 8},
        {"mesh": ["data"]},
        {"mesh": {"data": 1}, "sharding": 3},
        {"steps_per_call": 2.5},
        {"steps_per_call": None},
    ],
    ids=str,
)
def test_what_has_a_wrong_type_is_refused_when_the_trainer_is_made(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(ArgumentTypeError) as error:
        made(**arguments)
    assert next(iter(arguments)) in str(error.value) or "sharding" in str(error.value)
    assert error.value.fix


def test_an_axis_that_the_mesh_has_not_is_refused_before_the_first_step() -> None:
    sharding = Sharding(rules=[("kernel", (None, "modell"))])
    trainer = made(mesh=make_mesh({"data": 1, "model": 1}, ONE), sharding=sharding)
    data = {"x": np.ones((4, 3), "float32"), "label": np.zeros(4, "int32")}
    with pytest.raises(UnknownNameError, match="modell") as error:
        trainer.fit(data, steps=1)
    assert "'model'" in str(error.value)
    assert trainer.state is None


def test_the_shards_of_a_batch_are_told_by_process() -> None:
    assert pod({"data": 4}, [0, 1, 1, 0]).shards_by_process() == {0: {0, 3}, 1: {1, 2}}
    shared = pod({"model": 2, "data": 2}, [0, 0, 1, 1])
    assert shared.shards_by_process() == {0: {0, 1}, 1: {0, 1}}
    assert pod({"model": 2}, [0, 1]).shards_by_process() == {0: {0}, 1: {0}}


def test_a_mesh_of_other_processes_alone_has_no_rows_for_this_one() -> None:
    with pytest.raises(ArgumentError, match="no device of process 0") as error:
        pod({"data": 2}, [1, 1]).local_rows(4)
    assert "all processes" in str(error.value.fix)
