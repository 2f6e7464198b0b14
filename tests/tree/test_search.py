"""Finding and replacing by name."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.tree_util import keystr

from flaxtrain import optim, tree


class Inner(NamedTuple):
    count: Any
    mu: Any


class Outer(NamedTuple):
    count: Any
    inner: Any


@jax.tree_util.register_dataclass
@dataclass
class Node:
    inner: Any
    tail: Any


class Unknown(dict):  # type: ignore[type-arg]
    """A mapping that jax takes for a leaf."""


STATES = {
    "adam": optax.adam(0.1).init({"w": jnp.ones(2)}),
    "adamw of a schedule": optax.adamw(lambda count: 0.1).init({"w": jnp.ones(2)}),
    "injected": optax.inject_hyperparams(optax.sgd)(lambda count: 0.5).init(jnp.ones(2)),
    "ours": optim.adamw(lambda count: 0.1).init({"mu": jnp.ones(2)}),
    "nested": Outer(1, {"b": Inner(2, {"count": 3}), "a": [Inner(4, None), Inner(5, 6)]}),
    "dataclass": [Node(Inner(1, 2), {"mu": (Outer(1, 2),)})],
    "dicts": {"z": {"count": {"count": 1}}, "count": 5, "b": OrderedDict(count=7, a=8)},
    "default dict": defaultdict(list, {"x": Inner(1, 2), "count": 3}),
    "leaf": 3.0,
    "nothing": None,
}
KEYS = ["count", "mu", "inner", "learning_rate", "Inner", "ScaleByAdamState", "no such", 0]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_all_values_of_a_name_are_those_that_optax_finds(state: Any, key: Any) -> None:
    ours = tree.get_all_with_path(state, key)
    theirs = optax.tree.get_all_with_path(state, key)
    assert [keystr(path) for path, _ in ours] == [keystr(path) for path, _ in theirs]
    assert all(a is b for (_, a), (_, b) in zip(ours, theirs, strict=True))


# Where a value lies inside a sibling of another one, optax forgets it: tested below.
FLAT = ["adam", "adamw of a schedule", "ours", "dataclass", "leaf", "nothing"]


@pytest.mark.parametrize("key", ["count", "mu", "Inner", "w"])
@pytest.mark.parametrize("name", FLAT)
def test_replaced_values_are_those_that_optax_replaces(name: str, key: str) -> None:
    state = STATES[name]
    if not tree.get_all_with_path(state, key):
        with pytest.raises(KeyError, match="no value is named"):
            tree.set(state, **{key: 7})
        return
    ours, theirs = tree.set(state, **{key: 7}), optax.tree.set(state, **{key: 7})
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_after_setting_every_value_of_the_name_is_the_new_one(state: Any) -> None:
    if tree.get_all_with_path(state, "count"):
        found = tree.get_all_with_path(tree.set(state, count=7), "count")
        assert found and all(value == 7 for _, value in found)


def test_two_values_of_a_name_raise_and_their_paths_are_named() -> None:
    state = optim.adamw(lambda count: 0.1).init({"w": jnp.ones(2)})
    with pytest.raises(KeyError) as caught:
        tree.get(state, "count")
    text = str(caught.value)
    assert "2 values are named 'count'" in text
    assert "ScaleByAdamState.count" in text and "ScaleByScheduleState.count" in text

    def of_adam(path: Any, value: Any) -> bool:
        return path[-1] == tree.NamedTupleKey("ScaleByAdamState", "count")

    assert tree.get(state, "count", filtering=of_adam) is state[0].count
    changed = tree.set(state, of_adam, count=5)
    assert changed[0].count == 5 and changed[-1].count == state[-1].count


def test_a_value_that_is_not_there_is_the_default() -> None:
    assert tree.get({"a": 1}, "b") is None
    assert tree.get({"a": 1}, "b", default=3) == 3
    assert tree.get({"a": 1}, "a", 3, lambda path, value: value > 1) == 3


def test_a_name_inside_a_sibling_of_a_value_is_replaced_too() -> None:
    state = {"w": 1, "b": {"c": {"w": 2}}, "d": [{"w": 3}]}
    assert len(optax.tree.get_all_with_path(state, "w")) == 3
    assert optax.tree.set(state, w=0)["b"] == {"c": {"w": 2}}
    assert tree.set(state, w=0) == {"w": 0, "b": {"c": {"w": 0}}, "d": [{"w": 0}]}


def test_kinds_of_mappings_are_kept() -> None:
    state = {
        "ordered": OrderedDict(z=1, w=2),
        "default": defaultdict(list, w=1),
        "unknown": Unknown(w=1),
    }
    changed = tree.set(state, w=9)
    assert {name: type(value) for name, value in changed.items()} == {
        name: type(value) for name, value in state.items()
    }
    assert changed == {"ordered": {"z": 1, "w": 9}, "default": {"w": 9}, "unknown": {"w": 9}}
    assert state["unknown"] == {"w": 1}


def test_a_filter_that_passes_nothing_is_an_error_that_names_what_there_was() -> None:
    with pytest.raises(KeyError) as caught:
        tree.set({"a": {"w": 1}}, lambda path, value: False, w=2)
    assert "the filter passes none of the values named 'w'" in str(caught.value)
    assert "['a']['w']" in str(caught.value)


def test_values_are_found_and_replaced_while_tracing() -> None:
    @jax.jit
    def bumped(state: Any) -> Any:
        return tree.set(state, count=tree.get(state, "count") + 1)

    state = bumped(optim.scale_by_adam().init({"w": jnp.ones(2)}))
    assert int(state.count) == 1
