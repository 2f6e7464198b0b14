from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.checkpoint.compare import check_fits, tree_differences
from flaxtrain.checkpoint.leaves import LeafRecord
from flaxtrain.errors import CheckpointError

STORED = {
    "params/w": LeafRecord("array", (2, 3), "float32"),
    "params/b": LeafRecord("array", (3,), "float32"),
    "ema": LeafRecord("none"),
    "step": LeafRecord("number", (), "int", value="4"),
}


def state(**params):
    return {
        "params": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)} | params,
        "ema": None,
        "step": 0,
    }


def test_a_tree_that_fits_has_no_differences():
    assert tree_differences(STORED, state()) == []


def test_every_difference_is_listed_in_one_error():
    like = state(w=jnp.zeros((3, 2)), b=jnp.zeros(3, jnp.bfloat16), c=np.int8(1))
    like["ema"] = {"w": jnp.zeros(1)}
    del like["step"]
    with pytest.raises(CheckpointError) as caught:
        check_fits(STORED, like, where="/run/5")
    assert str(caught.value) == (
        "the checkpoint does not fit the state: 2 missing, 1 extra, 1 dtype, 1 shape\n"
        "    missing  ema/w: float32[1] in the state\n"
        "    missing  params/c: int8[] in the state\n"
        "    extra    step: Python int in the checkpoint\n"
        "    dtype    params/b: float32[3] in the checkpoint, bfloat16[3] in the state\n"
        "    shape    params/w: float32[2,3] in the checkpoint, float32[3,2] in the state\n"
        "  where: /run/5\n"
        "  fix:   build the state with the model and optimizer that the checkpoint was written "
        "with"
    )


def test_a_long_list_is_cut():
    with pytest.raises(
        CheckpointError, match=r"50 missing, 3 extra\n(.*\n){20}    \.\.\. and 33"
    ):
        check_fits(STORED, {str(i): jnp.zeros(1) for i in range(50)}, where="x")


def test_empty_containers_and_none_never_differ():
    assert (
        tree_differences({"a": LeafRecord("empty"), "b": LeafRecord("none")}, {"c": ()}) == []
    )
