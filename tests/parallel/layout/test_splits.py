"""The automatic rule, and specs as jax has them."""

from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec as P

from flaxtrain.parallel import abstract_mesh
from flaxtrain.parallel.layout.splits import (
    SMALL,
    UNDIVIDED,
    AutomaticSplit,
    partition_spec,
    unsplit,
)

MESH = abstract_mesh({"data": 2, "fsdp": 4, "model": 1}, 8)
FSDP = AutomaticSplit(MESH, ("fsdp",), 0)
NONE: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("shape", "avoid", "split"),
    [
        ((8, 16), (), 1),
        ((16, 8), (), 0),
        ((16, 16), (), 1),  # of equal axes, the last
        ((18, 8), (), 1),  # the longest does not divide
        ((12, 4, 8), (0,), 2),  # stacked layers are left alone
        ((12, 3, 7), (0,), 0),  # unless nothing else divides
        ((16, 0), (), 0),
    ],
)
def test_the_longest_axis_that_divides_is_split(
    shape: tuple[int, ...], avoid: tuple[int, ...], split: int
) -> None:
    expected = tuple(("fsdp",) if axis == split else NONE for axis in range(len(shape)))
    assert FSDP(shape, unsplit(shape), avoid) == expected
    assert FSDP.reason(shape, unsplit(shape)) == ""


def test_small_and_indivisible_arrays_stay_whole_and_the_reason_is_known() -> None:
    split = AutomaticSplit(MESH, ("fsdp",), 65)
    assert split((8, 8), unsplit((8, 8))) == (NONE, NONE)
    assert split.reason((8, 8), unsplit((8, 8))) == SMALL
    assert split.reason((9, 9), unsplit((9, 9))) == UNDIVIDED
    assert split.reason((5, 13), unsplit((5, 13))) == UNDIVIDED
    assert split((), ()) == ()


def test_an_axis_that_is_taken_is_left_alone() -> None:
    taken = (NONE, ("model",))
    assert FSDP((8, 16), taken) == (("fsdp",), ("model",))
    assert FSDP.reason((9, 16), taken) == UNDIVIDED
    assert FSDP((9, 16), taken) == taken


def test_several_mesh_axes_are_used_together_but_for_those_in_use() -> None:
    both = AutomaticSplit(MESH, ("data", "fsdp"), 0)
    assert both((4, 16), unsplit((4, 16))) == (NONE, ("data", "fsdp"))
    assert both((4, 12), unsplit((4, 12))) == (NONE, NONE)  # 8 divides neither
    assert both((4, 12), (("fsdp",), NONE)) == (("fsdp",), ("data",))
    assert both((4, 12), (("fsdp",), ("data",))) == (("fsdp",), ("data",))


def test_a_rule_over_one_device_splits_nothing_and_gives_no_reason() -> None:
    alone = AutomaticSplit(MESH, ("model",), 0)
    assert alone((8, 8), unsplit((8, 8))) == (NONE, NONE)
    assert alone.reason((8, 8), unsplit((8, 8))) == ""


def test_specs_have_no_axis_of_one_device_and_nothing_at_the_end() -> None:
    assert partition_spec(MESH, (("fsdp",), NONE, ("model",), NONE)) == P("fsdp")
    assert partition_spec(MESH, (NONE, ("data", "model"))) == P(None, "data")
    assert partition_spec(MESH, (("data", "fsdp"),)) == P(("data", "fsdp"))
    assert partition_spec(MESH, (NONE, NONE)) == P()
    assert len(partition_spec(MESH, (NONE, ("model",)))) == 0
