from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxtrain.checkpoint.named import from_named, leaf_name, name_keys, named_nodes, to_named
from flaxtrain.errors import CheckpointError


class Slots(NamedTuple):
    mu: Any
    nu: Any


@flax.struct.dataclass
class State:
    step: Any
    opt_state: Any
    apply_fn: Any = flax.struct.field(pytree_node=False, default=None)


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """A node that tells jax no names for its children."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Twins(Unnamed):
    """A node whose two children have one name."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey("twin"), child) for child in self.children], None


class TestToNamed:
    def test_fields_keys_and_positions_become_keys(self):
        state = State(step=1, opt_state=({"Dense_0": Slots(mu=2, nu=3)}, [4]), apply_fn=print)
        assert to_named(state) == {
            "step": 1,
            "opt_state": {"0": {"Dense_0": {"mu": 2, "nu": 3}}, "1": {"0": 4}},
        }

    def test_none_and_empty_containers_are_kept(self):
        assert to_named({"a": None, "b": (), "c": {}, "d": []}) == {
            "a": None,
            "b": {},
            "c": {},
            "d": {},
        }

    def test_integer_keys_are_written_as_text(self):
        assert to_named({1: "one", 10: "ten"}) == {"1": "one", "10": "ten"}

    def test_a_leaf_stays_a_leaf(self):
        assert to_named(5) == 5

    def test_children_without_names_are_numbered(self):
        assert to_named({"x": Unnamed(7, 8)}) == {"x": {"0": 7, "1": 8}}

    def test_two_children_of_one_name_are_refused_with_their_place(self):
        with pytest.raises(CheckpointError, match="both named 'twin'") as caught:
            to_named({"outer": Twins(1, 2)})
        assert caught.value.where == "outer"


class TestFromNamed:
    def test_static_fields_come_from_the_tree_that_is_filled(self):
        like = State(step=0, opt_state=Slots(0, None), apply_fn=len)
        filled = from_named({"step": 5, "opt_state": {"mu": 6, "nu": None}}, like)
        assert filled == State(step=5, opt_state=Slots(6, None), apply_fn=len)

    def test_missing_and_left_over_names_are_listed(self):
        with pytest.raises(CheckpointError, match=r"missing \['a/b'\], left over \['c'\]"):
            from_named({"c": 1}, {"a": {"b": 2}})


# Keys that would be mixed up if names were joined carelessly.
KEYS = st.text(alphabet="ab/\\.%0é", max_size=4)
TREES = st.recursive(
    st.integers() | st.none(),
    lambda child: (
        st.dictionaries(KEYS, child, max_size=3)
        | st.lists(child, max_size=3)
        | st.tuples(child, child)
        | st.builds(Slots, child, child)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(TREES)
def test_names_lead_back_to_the_tree(tree):
    assert from_named(to_named(tree), tree) == tree


@settings(deadline=None)
@given(TREES)
def test_nodes_cover_all_leaves_and_their_names_are_all_different(tree):
    nodes = list(named_nodes(tree))
    leaves = [node for _, node in nodes if node is not None and not isinstance(node, dict)]
    assert leaves == jax.tree.leaves(tree)
    names = [leaf_name(path) for path, _ in nodes]
    assert len(set(names)) == len(names)
    assert [name_keys(name) for name in names] == [path for path, _ in nodes]


def test_names_of_the_top_and_of_the_empty_key_differ():
    assert leaf_name(()) != leaf_name(("",))
    assert name_keys(leaf_name(())) == () and name_keys(leaf_name(("",))) == ("",)


def test_arrays_are_passed_through_untouched():
    array = np.arange(3)
    assert to_named({"x": (array,)})["x"]["0"] is array
