"""Positions of added axes."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import pytest

from flaxtrain.params.axes import AxisBox, Shape, array_in, box_leaves, guess_axes, unbox_leaves


def added(*positions: int, rank: int = 2) -> AxisBox:
    box = AxisBox(jnp.ones((1,) * rank), rank=rank)
    for position in positions:
        box = box.add_axis(position, {})
    return box


@pytest.mark.parametrize(
    ("positions", "axes"),
    [
        ((0,), (0,)),
        ((2,), (2,)),
        ((-1,), (2,)),
        ((-2,), (1,)),
        ((0, 0), (1, 0)),
        ((0, 1), (0, 1)),
        ((1, 0), (2, 0)),
        ((-1, 0), (3, 0)),
        ((0, -1), (0, 3)),
        ((-1, -1), (2, 3)),
    ],
)
def test_axes_are_positions_in_the_final_shape(positions: Shape, axes: Shape) -> None:
    assert added(*positions).axes == axes


@pytest.mark.parametrize("position", [0, 1, 2, 3, -1, -2])
def test_removing_an_axis_undoes_adding_it(position: int) -> None:
    before = added(1)
    after = before.add_axis(position, {}).remove_axis(position, {})
    assert (after.axes, after.rank) == (before.axes, before.rank)


def test_a_box_inside_is_told_about_each_axis() -> None:
    inner = nn.Partitioned(jnp.ones((2, 3)), names=("in", "out"))
    box = box_leaves({"w": inner})["w"].add_axis(0, {nn.PARTITION_NAME: "layers"})
    assert box.value.names == ("layers", "in", "out")
    assert box.remove_axis(0, {nn.PARTITION_NAME: "layers"}).value.names == ("in", "out")
    assert unbox_leaves({"w": box})["w"] is box.value
    assert array_in(box).shape == (2, 3)


def test_what_holds_no_single_array_has_none() -> None:
    assert array_in((jnp.ones(2), jnp.ones(2))) is None
    assert array_in(None) is None
    assert array_in(1.0) is None


@pytest.mark.parametrize(
    ("local", "shape", "axes"),
    [
        ((8,), (3, 8), (0,)),
        ((8,), (8, 3), (1,)),
        ((8,), (8, 8), (0,)),
        ((8, 4), (2, 8, 3, 4), (0, 2)),
        ((), (3,), (0,)),
        ((8, 5), (5, 8), ()),
        ((8, 5), (3, 5, 8), ()),
        ((8,), (), ()),
    ],
)
def test_lost_axes_are_guessed_from_the_shapes(local: Shape, shape: Shape, axes: Shape) -> None:
    assert guess_axes(local, shape) == axes
