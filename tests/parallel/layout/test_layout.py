"""Where the arrays of a training state lie."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxtrain.errors import ArgumentError
from flaxtrain.parallel import Layout, Sharding, abstract_mesh, make_mesh
from flaxtrain.params import Facts
from flaxtrain.spec import AccumulateBatches, Ema, OptSpec
from flaxtrain.train import TrainState, make_recipe
from flaxtrain.tree import flatten, path_name
from tests.models import CNN
from tests.parallel.nets import Stack, stack_facts

MESH = abstract_mesh({"data": 2, "fsdp": 4}, 8)
DATA = abstract_mesh({"data": 8}, 8)


def layout(kind: str, mesh: Any = MESH, **arguments: Any) -> Layout:
    return Layout(mesh, Sharding(kind, **{"min_size": 0, **arguments}), stack_facts())


def specs(table: Any) -> dict[str, P]:
    return {path_name(path): spec for path, spec in table.items()}


WHOLE_NAMES = {"head/kernel", "odd/kernel", "odd/bias", "scale"}


def test_replicated_splits_nothing_and_keeps_nothing_back() -> None:
    found = layout("replicated")
    assert set(found.params.values()) == set(found.slots.values()) == {P()}
    assert found.left_whole == {}


def test_fsdp_splits_parameters_and_slots_over_its_axis_and_not_along_layers() -> None:
    found = layout("fsdp")
    assert found.params == found.slots
    assert specs(found.params) == {
        "embed/embedding": P(None, "fsdp"),
        "blocks/norm/scale": P(None, "fsdp"),
        "blocks/norm/bias": P(None, "fsdp"),
        "blocks/up/kernel": P(None, None, "fsdp"),
        "blocks/up/bias": P(None, "fsdp"),
        "blocks/down/kernel": P(None, "fsdp"),
        "blocks/down/bias": P(None, "fsdp"),
        "square/kernel": P(None, "fsdp"),
        "square/bias": P("fsdp"),
        "odd/kernel": P("fsdp"),
        "odd/bias": P(),
        "head/kernel": P(),
        "scale": P(),
    }


def test_without_an_axis_fsdp_it_splits_over_data() -> None:
    assert layout("fsdp", DATA).params["square", "kernel"] == P(None, "data")


def test_zero1_splits_slots_alone_over_all_devices_of_a_batch() -> None:
    found = layout("zero1")
    assert set(found.params.values()) == {P()}
    assert found.slots["square", "kernel"] == P(None, ("data", "fsdp"))
    assert found.slots["blocks", "up", "kernel"] == P(None, None, ("data", "fsdp"))


def test_what_stays_whole_is_listed_with_the_reason() -> None:
    found = layout("fsdp", min_size=600)
    reasons = {path_name(path): reason for path, reason in found.left_whole.items()}
    assert reasons == {
        "blocks/norm/bias": "below the threshold",
        "blocks/norm/scale": "below the threshold",
        "blocks/down/bias": "below the threshold",
        "head/kernel": "below the threshold",
        "odd/bias": "below the threshold",
        "odd/kernel": "below the threshold",
        "scale": "below the threshold",
        "square/bias": "below the threshold",
    }
    assert {path_name(path): why for path, why in layout("fsdp").left_whole.items()} == {
        "head/kernel": "no axis divides",
        "odd/bias": "no axis divides",
        "scale": "no axis divides",
    }


def test_a_mesh_of_one_device_splits_nothing_and_has_no_reasons() -> None:
    one = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    found = layout("fsdp", one)
    assert set(found.params.values()) == {P()}
    assert found.left_whole == {}
    assert found.batch() == NamedSharding(one, P())


def test_rows_are_spread_over_data_and_fsdp() -> None:
    found = layout("fsdp")
    assert found.batch().spec == P(("data", "fsdp"))
    assert found.batch(stacked=True).spec == P(None, ("data", "fsdp"))
    assert layout("zero1", DATA).batch().spec == P("data")
    tensors = abstract_mesh({"model": 8}, 8)
    assert layout("replicated", tensors).batch().spec == P()


def test_a_kind_that_splits_needs_an_axis_to_split_over() -> None:
    for kind in ("fsdp", "zero1"):
        with pytest.raises(ArgumentError, match="a mesh of the axes 'model'") as error:
            layout(kind, abstract_mesh({"model": 8}, 8))
        assert '"data" or "fsdp"' in str(error.value.fix)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Manual])
def test_a_mesh_on_which_xla_does_not_decide_is_refused(kind: AxisType) -> None:
    mesh = AbstractMesh((8,), ("data",), axis_types=(kind,))
    with pytest.raises(ArgumentError, match=f"'data' is of type {kind.name}") as error:
        layout("replicated", mesh)
    assert "make_mesh" in str(error.value.fix)


def test_only_fsdp_and_rules_split_parameters_as_rows_are() -> None:
    assert layout("fsdp").splits_like_rows
    assert not layout("fsdp", abstract_mesh({"data": 8, "fsdp": 1}, 8)).splits_like_rows
    assert not layout("zero1").splits_like_rows
    assert not layout("replicated").splits_like_rows
    assert layout("replicated", rules=[("square/kernel", ("data", None))]).splits_like_rows
    model = abstract_mesh({"data": 4, "model": 2}, 8)
    ruled = layout("zero1", model, rules=[("square/kernel", ("model", None))])
    assert not ruled.splits_like_rows


@functools.cache
def stack_state() -> TrainState:
    """A state with slots, an average of the weights, and sums of gradients; shapes only."""
    tokens = jax.ShapeDtypeStruct((8, 4), jnp.int32)
    batch = {"tokens": tokens, "label": tokens}
    spec = OptSpec("adam", 0.1, ema=Ema(0.9), accumulate=AccumulateBatches(2))
    return jax.eval_shape(make_recipe(Stack(), spec, batch).init)


@pytest.mark.parametrize("kind", ["replicated", "zero1", "fsdp"])
def test_a_training_state_lies_by_its_fields(kind: str) -> None:
    state, found = stack_state(), layout(kind)
    shardings = found.state(state)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)

    def by_path(tree: Any) -> dict[Any, P]:
        return {path: sharding.spec for path, sharding in flatten(tree).items()}

    assert by_path(shardings.params) == found.params
    slots = shardings.opt_state.slots
    assert by_path(slots["mu"]) == by_path(slots["nu"]) == found.slots
    assert by_path(shardings.ema.params) == found.slots
    assert by_path(shardings.accumulated.grads[0]) == found.slots
    rest = (shardings.step, shardings.rng, shardings.counters, shardings.loss_scale)
    assert {sharding.spec for sharding in jax.tree.leaves(rest)} == {P()}


def test_collections_are_on_every_device_and_averages_of_them_too() -> None:
    batch = {"x": jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)}
    batch["label"] = jax.ShapeDtypeStruct((8,), jnp.int32)
    recipe = make_recipe(CNN(), OptSpec("sgd", 0.1, ema=Ema(0.9)), batch)
    state = jax.eval_shape(recipe.init)
    shardings = Layout(MESH, Sharding("fsdp", min_size=0), recipe.facts).state(state)
    collections = (shardings.collections, shardings.ema.collections)
    leaves = jax.tree.leaves(collections)
    assert len(leaves) > 2
    assert {sharding.spec for sharding in leaves} == {P()}


def test_parameters_that_the_table_does_not_have_are_split_by_their_shape() -> None:
    tree = {"params": {"lora": {"a": jax.ShapeDtypeStruct((8, 64), jnp.float32)}}}
    assert layout("fsdp").state(tree)["params"]["lora"]["a"].spec == P(None, "fsdp")
    for kind in ("zero1", "replicated"):
        assert layout(kind).state(tree)["params"]["lora"]["a"].spec == P()


@pytest.mark.parametrize("kind", ["replicated", "zero1", "fsdp"])
@pytest.mark.parametrize("min_size", [0, 600])
def test_the_table_has_the_bytes_that_the_shards_of_a_device_have(
    kind: str, min_size: int
) -> None:
    state, found = stack_state(), layout(kind, min_size=min_size)
    table = found.describe(state)

    def held(part: Any) -> int:
        leaves = zip(jax.tree.leaves(part), jax.tree.leaves(found.state(part)), strict=True)
        # What a spec names is a divisor of the array's size.
        return sum(
            leaf.size
            * leaf.dtype.itemsize
            // math.prod(MESH.shape[name] for name in jax.tree.leaves(tuple(sharding.spec)))
            for leaf, sharding in leaves
        )

    assert table.per_device.total == held(state)
    assert table.whole.total == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    assert sum(row.param_bytes for row in table.rows) == held({"params": state.params})
    share = {"replicated": 1, "zero1": 8, "fsdp": 4}[kind]
    assert table.per_device.slots * share == table.whole.slots
    assert table.per_device.params * (4 if kind == "fsdp" else 1) == table.whole.params
    assert table.per_device.left_whole == table.whole.left_whole
    assert (table.per_device.left_whole == 0) == (kind == "replicated")
    assert [row.path for row in table.rows] == list(flatten(state.params))
    assert {
        row.path: row.left_whole for row in table.rows if row.left_whole
    } == found.left_whole


def test_a_row_has_one_parameter_and_all_its_slots() -> None:
    table = layout("zero1", DATA).describe(stack_state())
    row = next(row for row in table.rows if row.name == "square/kernel")
    # mu, nu, the average of the weights, and the sum of gradients: a share of each.
    assert row.param_bytes == 32 * 32 * 4
    assert row.slot_bytes == 4 * row.param_bytes // 8
    assert (row.spec, row.slot_spec, row.left_whole) == (P(), P(None, "data"), "")


def test_a_model_without_parameters_has_a_layout() -> None:
    found = Layout(MESH, Sharding("fsdp"), Facts(()))
    assert found.params == found.slots == found.left_whole == {}
    assert found.describe({}).per_device.total == 0
