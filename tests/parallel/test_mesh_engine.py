from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxtrain.parallel import make_mesh
from flaxtrain.parallel.devices import Devices
from flaxtrain.parallel.mesh_engine import _moving
from flaxtrain.params import param_facts


def test_several_processes_place_states_alike_by_one_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    facts = param_facts(nn.Dense(2), np.ones((1, 3), "float32"))
    _moving.cache_clear()
    states = [{"params": {"kernel": np.full((3, 2), 1.0 * n), "step": n}} for n in range(3)]
    for state in states:
        # An engine of its own for each, as every call of a trainer may have.
        engine = Devices.of(make_mesh({"data": 1}, jax.devices()[:1])).engine(facts)
        placed = engine.place_state(state)
        np.testing.assert_array_equal(placed["params"]["kernel"], state["params"]["kernel"])
        assert placed["params"]["step"] == state["params"]["step"]
        assert engine.place_state(placed) is placed
    assert _moving.cache_info().misses == 1
    assert _moving.cache_info().hits == len(states) - 1
