from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from flaxtrain import optim
from flaxtrain.errors import ParameterError
from flaxtrain.params.variable_trees import Variables, source_table
from flaxtrain.train import TrainState

PARAMS = {"Dense_0": {"kernel": np.ones((2, 3), np.float32)}}
STATS = {"BatchNorm_0": {"mean": np.ones(3, np.float32)}}
TARGET = Variables.of({"params": PARAMS, "batch_stats": STATS})
BOTH = {("params", "Dense_0", "kernel"), ("batch_stats", "BatchNorm_0", "mean")}


class Slots(NamedTuple):
    mu: Any


def state(**fields: Any) -> dict[str, Any]:
    return {"step": 3, "params": PARAMS, "opt_state": (Slots(PARAMS), ()), **fields}


SOURCES = {
    "variables": {"params": PARAMS, "batch_stats": STATS},
    "a FrozenDict": freeze({"params": PARAMS, "batch_stats": STATS}),
    "a state with batch_stats": state(batch_stats=STATS),
    "a state with collections": state(collections={"batch_stats": STATS}),
    "a state whose params are the variables": state(
        params={"params": PARAMS, "batch_stats": STATS}
    ),
    "our TrainState": TrainState.create(
        apply_fn=None, params=PARAMS, collections={"batch_stats": STATS}, tx=optim.adam(0.1)
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_variables_are_found_in(name: str) -> None:
    table, ignored = source_table(SOURCES[name], TARGET)
    assert table.keys() == BOTH
    assert ("opt_state" in ignored) == ("tate" in name)


def test_params_alone_and_another_collection_alone_are_recognized() -> None:
    assert source_table(PARAMS, TARGET)[0].keys() == {("params", "Dense_0", "kernel")}
    alone = source_table({"batch_stats": STATS}, TARGET)[0]
    assert alone.keys() == {("batch_stats", "BatchNorm_0", "mean")}


def test_variables_without_optimizer_state_keep_every_collection() -> None:
    table, ignored = source_table({"params": PARAMS, "cache": {"index": 1}}, TARGET)
    assert ("cache", "index") in table and ignored == ()


def test_modules_may_be_called_like_collections() -> None:
    params = {"batch_stats": {"w": np.ones(2)}, "params": {"w": np.ones(2)}}
    target = Variables.of({"params": params})
    assert source_table({"params": params}, target)[0].keys() == target.table.keys()
    assert source_table({"batch_stats": params["batch_stats"]}, target)[0].keys() == {
        ("params", "batch_stats", "w")
    }


def test_numbers_become_arrays_and_none_is_nothing() -> None:
    table, _ = source_table({"a": 1.5, "b": None, "c": {}}, TARGET)
    assert table[("params", "a")].shape == () and len(table) == 1


def test_a_source_of_something_else_is_refused_with_its_path() -> None:
    with pytest.raises(ParameterError, match="holds a str, not an array") as caught:
        source_table({"a": {"b": "text"}}, TARGET)
    assert caught.value.where == "a/b"
    with pytest.raises(ParameterError, match="holds a ShapeDtypeStruct"):
        source_table({"a": jax.ShapeDtypeStruct((2,), np.float32)}, TARGET)
    with pytest.raises(ParameterError, match="the source can't be read: a dict has keys of"):
        source_table({"1": np.ones(1), 1: np.ones(1)}, TARGET)
    with pytest.raises(ParameterError, match="an ndarray was passed for the variables"):
        Variables.of(np.ones(2))


def test_what_is_filled_keeps_its_structure_and_its_boxes() -> None:
    init = nn.with_partitioning(nn.initializers.zeros, (None, "data"))
    variables = nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 2)))
    target = Variables.of(freeze(variables))
    assert list(target.table) == [("params", "bias"), ("params", "kernel")]
    filled = target.filled({("params", "kernel"): jnp.ones((2, 3))})
    assert jax.tree.structure(filled) == jax.tree.structure(freeze(variables))
    assert isinstance(filled["params"]["kernel"], nn.Partitioned)
    assert float(filled["params"]["kernel"].value.sum()) == 6
    assert filled["params"]["bias"] is variables["params"]["bias"]


def test_variables_that_are_not_arrays_are_refused() -> None:
    with pytest.raises(ParameterError, match="the variables hold a float, not an array"):
        Variables.of({"params": {"w": 1.0}})
