"""Slots of all optimizers: where they lie, and that every one divides."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from flaxtrain.optim import NAMED
from flaxtrain.parallel import Layout, Sharding, abstract_mesh
from flaxtrain.parallel.layout.slots import Owner, slot_splits
from flaxtrain.parallel.layout.splits import AutomaticSplit
from flaxtrain.spec import OptSpec, build
from flaxtrain.tree import key_of
from tests.parallel.nets import stack_facts

MESH = abstract_mesh({"data": 2, "fsdp": 4}, 8)
KINDS = ("zero1", "fsdp")
FSDP = AutomaticSplit(MESH, ("fsdp",), 0)
NONE: tuple[str, ...] = ()


def abstract_params() -> dict[str, Any]:
    return stack_facts().tree(lambda fact: jax.ShapeDtypeStruct(fact.shape, fact.dtype))


def check(state: Any, kind: str) -> dict[str, P]:
    """Every slot divides, and one of a parameter's shape lies as `Layout.slots` says.

    Returns:
        The specs by name.
    """
    layout = Layout(MESH, Sharding(kind, min_size=0), stack_facts())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shardings = jax.tree.leaves(layout.state(state))
    for (keys, leaf), sharding in zip(leaves, shardings, strict=True):
        sharding.shard_shape(leaf.shape)  # raises where it does not divide
        names = tuple(map(key_of, keys))
        for path, fact in layout.facts.items():
            if names[-len(path) :] == path and leaf.shape == fact.shape:
                assert sharding.spec == layout.slots[path], names
    names = ["/".join(map(key_of, keys)) for keys, _ in leaves]
    return {name: sharding.spec for name, sharding in zip(names, shardings, strict=True)}


@pytest.mark.parametrize("name", NAMED)
def test_every_slot_of_a_named_optimizer_divides_and_follows_its_parameter(name: str) -> None:
    options: dict[str, Any] = {"adafactor": {"min_dim_size_to_factor": 8}}
    spec = OptSpec(name, learning_rate=0.1, **options.get(name, {}))
    tx = build(spec, stack_facts())
    state = jax.eval_shape(tx.init, abstract_params())
    for kind in KINDS:
        specs = check(state, kind)
        split = [name for name, spec in specs.items() if spec != P()]
        # Those without slots have nothing to split.
        assert split or not jax.tree.leaves(state.slots) or name == "noisy_sgd"


def test_rows_and_columns_inherit_the_axes_that_are_left() -> None:
    spec = OptSpec("adafactor", learning_rate=0.1, min_dim_size_to_factor=8)
    state = jax.eval_shape(build(spec, stack_facts()).init, abstract_params())
    specs = check(state, "fsdp")
    # The kernel [8, 32, 96] is split along its last axis: the row [8, 32] has it no more, and
    # the automatic rule splits it by itself.
    assert specs["slots/v_col/blocks/up/kernel"] == P(None, "fsdp")
    assert specs["slots/v_row/blocks/up/kernel"] == P(None, "fsdp")
    assert specs["slots/v/blocks/up/kernel"] == P()


def test_the_vector_of_an_axis_is_split_as_that_axis() -> None:
    state = jax.eval_shape(build(OptSpec("sm3", 0.1), stack_facts()).init, abstract_params())
    layout = Layout(MESH, Sharding("fsdp", min_size=1000), stack_facts())
    vectors = layout.state(state).slots["mu"]["blocks"]["up"]["kernel"]
    assert [vector.spec for vector in vectors] == [P(), P(), P("fsdp")]


def test_stacks_of_matrices_are_split_between_matrices_where_they_divide() -> None:
    assert slot_splits((8, 6, 6), Owner((), ()), FSDP) == (("fsdp",), NONE, NONE)
    assert slot_splits((4, 64, 64), Owner((), ()), FSDP) == (("fsdp",), NONE, NONE)
    assert slot_splits((3, 8, 8), Owner((), ()), FSDP) == (NONE, NONE, ("fsdp",))
    assert slot_splits((3, 7, 7), Owner((), ()), FSDP) == (NONE, NONE, NONE)


def test_a_slot_without_one_of_two_equal_axes_is_not_taken_for_either() -> None:
    large = AutomaticSplit(MESH, ("fsdp",), 1000)
    owner = Owner((32, 32), (NONE, ("fsdp",)))
    assert slot_splits((32,), owner, large) == (NONE,)
    # Where both would be the same, nothing has to be known.
    assert slot_splits((32,), Owner((32, 32), (NONE, NONE)), FSDP) == (("fsdp",),)


def test_what_belongs_to_no_parameter_is_split_if_it_is_large() -> None:
    split = AutomaticSplit(MESH, ("fsdp",), 100)
    assert slot_splits((4000,), Owner((), ()), split) == (("fsdp",),)
    assert slot_splits((40,), Owner((), ()), split) == (NONE,)
    assert slot_splits((), Owner((), ()), FSDP) == ()


FOREIGN = {
    "adamw": optax.adamw(
        optax.linear_schedule(1.0, 0.0, 9),
        mask=lambda params: jax.tree.map(lambda _: True, params),
    ),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=8),
    "sm3": optax.sm3(0.1),
    "chain": optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.1)),
    "MultiSteps": optax.MultiSteps(optax.lion(0.1), 2).gradient_transformation(),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)},
        lambda params: {name: "b" if name == "blocks" else "a" for name in params},
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_other_libraries_find_their_parameters(name: str, kind: str) -> None:
    state = jax.eval_shape(FOREIGN[name].init, abstract_params())
    split = {name for name, spec in check(state, kind).items() if spec != P()}
    assert any("blocks/up/kernel" in name for name in split)


def test_keys_counts_and_empty_trees_are_on_every_device() -> None:
    layout = Layout(MESH, Sharding("fsdp", min_size=0), stack_facts())
    key = jax.eval_shape(lambda: jax.random.key(0))
    tree = {"key": key, "count": jnp.zeros((), jnp.int32), "none": None, "empty": {}, "n": 3}
    shardings = layout.state(tree)
    assert {sharding.spec for sharding in jax.tree.leaves(shardings)} == {P()}
    assert jax.tree.structure(shardings) == jax.tree.structure(tree)
    assert layout.state({}) == {}
