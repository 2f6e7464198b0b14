"""Which parameter a leaf of a state belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import pytest
from flax import struct

from flaxtrain.parallel.layout.leaves import Role, role_of

PATHS = {("kernel",), ("encoder", "kernel"), ("encoder", "mu"), ("mu",)}


class Slots(NamedTuple):
    mu: Any


class State(struct.PyTreeNode):
    params: Any = None
    opt_state: Any = None
    ema: Any = None
    collections: Any = None


def found(tree: Any) -> Role:
    [(keys, _)] = jax.tree_util.tree_leaves_with_path(tree)
    return role_of(keys, PATHS)


KERNEL = {"encoder": {"kernel": 0}}


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        (KERNEL, "params"),
        ({"params": KERNEL}, "params"),
        (State(params=KERNEL), "params"),
        ((State(params=KERNEL), {}), "params"),
        ([KERNEL], "params"),
        ({"mu": KERNEL}, "slots"),
        (Slots(KERNEL), "slots"),
        (State(opt_state={"params": KERNEL}), "slots"),
        (State(opt_state=(Slots(KERNEL), {})), "slots"),
        (State(ema=State(params=KERNEL)), "slots"),
    ],
    ids=str,
)
def test_a_path_below_params_or_at_the_root_is_a_parameter_all_else_is_a_slot_of_it(
    tree: Any, kind: str
) -> None:
    assert found(tree) == (kind, ("encoder", "kernel"), None)


def test_the_longest_path_counts_and_of_equal_ones_the_last() -> None:
    assert found(State(opt_state={"mu": {"kernel": 0}})).path == ("kernel",)
    assert found(State(opt_state={"mu": {"mu": 0}})).path == ("mu",)
    assert found(State(opt_state={"nu": {"encoder": {"mu": 0}}})).path == ("encoder", "mu")
    assert found(State(opt_state={"mu": {"head": {"bias": 0}}})).path == ("mu",)


def test_a_list_of_slots_is_counted_and_other_levels_below_are_not() -> None:
    assert found({"mu": {"encoder": {"kernel": [0]}}}).item == 0
    assert found({"mu": {"encoder": {"kernel": {"row": 0}}}}).item is None


def test_collections_are_neither_also_if_they_have_the_names_of_a_parameter() -> None:
    assert found(State(collections={"stats": KERNEL})) == ("other", None, None)
    assert found(State(ema=State(collections={"stats": KERNEL}))).kind == "other"


def test_a_parameter_that_nobody_knows_is_one_all_the_same() -> None:
    assert found(State(params={"lora": {"kernel": 0}})) == ("params", None, None)
    assert found({"mu": {"unknown": 0}, "x": None}) == ("slots", ("mu",), None)
    assert found({"nu": {"unknown": 0}}) == ("slots", None, None)
