"""Parameters split by rules and by the names of their axes give the numbers of one device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import flaxtrain as ft
from flaxtrain.parallel import Sharding
from flaxtrain.tree import flatten, path_name
from tests.parallel.nets import Named, Stack
from tests.runs import FLOAT32_BAR, deviation

RNG = np.random.default_rng(0)
TOKENS = {
    "tokens": RNG.integers(0, 50, (32, 4)).astype("int32"),
    "label": RNG.integers(0, 7, (32, 4)).astype("int32"),
}
ROWS = {
    "x": RNG.normal(size=(32, 32)).astype("float32"),
    "label": RNG.integers(0, 16, 32).astype("int32"),
}
MEGATRON = [
    ("blocks/up/kernel", (None, None, "model")),
    ("blocks/up/bias", (None, "model")),
    ("blocks/down/kernel", (None, "model", None)),
]


def fitted(model: Any, data: Any, **arguments: Any) -> Any:
    trainer = ft.Trainer(model, ft.OptSpec("sgd", 0.01, momentum=0.9), **arguments)
    trainer.fit(data, batch_size=16, epochs=2)
    return trainer.state


def specs(state: Any) -> dict[str, P]:
    return {path_name(path): leaf.sharding.spec for path, leaf in flatten(state.params).items()}


@pytest.mark.slow
def test_rules_split_scanned_layers_beside_fsdp_and_change_no_number() -> None:
    sharding = Sharding("fsdp", rules=MEGATRON, min_size=0)
    mesh = {"data": 2, "fsdp": 2, "model": 2}
    state = fitted(Stack(), TOKENS, mesh=mesh, sharding=sharding)
    momentum = state.opt_state.slots["trace"]["blocks"]["up"]["kernel"]
    assert specs(state)["blocks/up/kernel"] == P(None, "fsdp", "model")
    assert momentum.sharding.spec == P(None, "fsdp", "model")
    alone = fitted(Stack(), TOKENS)
    assert deviation(jax.device_get(state.params), jax.device_get(alone.params)) < FLOAT32_BAR


def test_names_of_axes_split_parameters_and_change_no_number() -> None:
    # And the kind splits beside them.
    sharding = Sharding("fsdp", logical={"embed": None, "mlp": "model"}, min_size=0)
    mesh = {"data": 2, "fsdp": 2, "model": 2}
    state = fitted(Named(), ROWS, mesh=mesh, sharding=sharding)
    assert specs(state)["Dense_0/kernel"] == P("fsdp", "model")
    assert specs(state)["Dense_1/kernel"] == P("fsdp")
    alone = fitted(Named(), ROWS)
    assert deviation(jax.device_get(state.params), jax.device_get(alone.params)) < FLOAT32_BAR
