"""A plan for eight devices says what each of them will hold, and what it gets of a batch."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft

DATA = {"x": np.ones((60, 64), "float32"), "label": np.zeros(60, "int32")}
MODEL = nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(4)])
NAMES = ["layers_0/bias", "layers_2/kernel", "layers_2/bias"]


def trainer(**arguments: Any) -> ft.Trainer:
    spec = ft.OptSpec("adam", 1e-3, ema=0.9, accumulate=2)
    return ft.Trainer(MODEL, spec, verbose=False, **arguments)


def held(tree: Any) -> int:
    """Returns the bytes that the first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("sharding", ["zero1", "fsdp"])
def test_the_plan_is_what_devices_hold_then(sharding: str) -> None:
    found = trainer(mesh={"data": -1}, sharding=ft.Sharding(sharding, min_size=4096))
    # Microbatches of 10 rows become 16.
    plan = found.plan(DATA, batch_size=20, steps=2)
    assert (plan.devices.mesh, plan.devices.rows, plan.devices.padding) == ({"data": 8}, 4, 12)
    assert plan.devices.left_whole == {"below the threshold": tuple(sorted(NAMES))}
    state = found.fit(DATA, batch_size=20, steps=2).state
    expected = {
        "parameters": state.params,
        "slots": state.opt_state,
        "collections": state.collections,
        "average": state.ema,
        "total": state,
    }
    assert plan.devices.memory == {kind: held(tree) for kind, tree in expected.items()}
    for kind, split in (("parameters", sharding == "fsdp"), ("slots", True), ("average", True)):
        assert (plan.devices.memory[kind] < plan.memory[kind] / 4) == split, kind


def test_under_pmap_every_device_holds_everything() -> None:
    plan = trainer(backend="pmap").plan(DATA, batch_size=20, steps=2)
    assert plan.devices.memory == plan.memory
    assert "mesh data=8 (cpu); sharding replicated; pmap" in plan.text()
    assert "4 rows of a batch (of all, 12 are padding); parameters" in plan.text()
