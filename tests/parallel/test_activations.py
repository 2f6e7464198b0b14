"""Rows stay where they are: seen in the program, before any compiler."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from flaxtrain.parallel import Layout, Sharding, abstract_mesh
from flaxtrain.parallel.activations import keep_rows
from flaxtrain.parallel.mesh import AnyMesh
from flaxtrain.params import param_facts

FSDP = abstract_mesh({"data": 2, "fsdp": 4}, 8)
X = jnp.ones((8, 16))


class Net(nn.Module):
    """Two layers, the second under `nn.jit`; the first one also sees a table without rows."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = nn.Dense(32)
        table = first(jnp.ones((3, 16)))
        return nn.jit(nn.Dense)(64)(first(x) + table.mean(axis=0, keepdims=True))


def constrained(kind: str, mesh: AnyMesh = FSDP, x: jax.Array = X) -> list[str]:
    """Returns the shapes of arrays that are told where to lie, with their specs."""
    facts = param_facts(Net(), X)
    layout = Layout(mesh, Sharding(kind, min_size=0), facts)
    params = facts.tree(lambda fact: jnp.zeros(fact.shape))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        with keep_rows(layout, {}) as streams:
            return Net().apply({"params": params}, x, rngs=streams)

    return [
        f"{equation.invars[0].aval.shape} {equation.params['sharding'].spec}"
        for equation in _equations(jax.make_jaxpr(apply)(params, x).jaxpr)
        if equation.primitive.name == "sharding_constraint"
    ]


def _equations(jaxpr: Any) -> list[Any]:
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jaxprs_in_params(equation.params):
            found += _equations(inner)
    return found


def test_outputs_with_rows_are_kept_with_fsdp_and_other_axes_stay_open() -> None:
    found = constrained("fsdp")
    # The first layer, the second one, and the model, whose output is the same.
    assert [text.split(") ")[0] for text in found] == ["(8, 32", "(8, 64", "(8, 64"]
    assert all("('data', 'fsdp'), UNCONSTRAINED" in text for text in found)


@pytest.mark.parametrize("kind", ["replicated", "zero1"])
def test_nothing_is_done_where_parameters_are_whole(kind: str) -> None:
    assert constrained("fsdp") and not constrained(kind)
    assert not constrained("fsdp", abstract_mesh({"data": 8, "fsdp": 1}, 8))


def test_rows_that_the_devices_do_not_divide_are_left_alone() -> None:
    assert not constrained("fsdp", x=jnp.ones((12, 16)))


def test_under_nn_jit_a_mesh_is_not_answered_with_the_program_of_another() -> None:
    other = abstract_mesh({"data": 4, "fsdp": 2}, 8)
    assert len(constrained("fsdp")) == len(constrained("fsdp", other)) == 3
    [*_, inner, _] = constrained("fsdp", abstract_mesh({"fsdp": 8}, 8))
    assert inner.startswith("(8, 64)") and "'data'" not in inner
