"""What one device has to hold of arrays; sums of it are tested with `Layout.describe`."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from flaxtrain.parallel import Layout, Sharding, abstract_mesh
from flaxtrain.parallel.layout.table import on_one_device
from flaxtrain.params import param_facts


def test_a_device_of_a_mesh_that_is_not_there_has_its_share() -> None:
    facts = param_facts(nn.Dense(512), np.ones((1, 256), "float32"))
    mu = facts.tree(lambda fact: jax.ShapeDtypeStruct(fact.shape, fact.dtype))
    layout = Layout(abstract_mesh({"data": 2, "fsdp": 4}, 8), Sharding("fsdp"), facts)
    state = {"params": mu}
    found = on_one_device(state, layout.state(state))["params"]
    assert (found["kernel"].shape, found["bias"].shape) == ((256, 128), (512,))
