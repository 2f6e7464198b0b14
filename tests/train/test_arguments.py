"""What a step function may be called with; what it may not is in `tests/test_wrong_uses.py`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.train.arguments import check_call, check_mask, check_norms

BATCH = {"x": np.ones((4, 3), np.float32), "target": np.ones((4, 1), np.float32)}


@pytest.mark.parametrize("norms", [True, False, np.True_, np.array(False), jnp.array(True)])
def test_norms_are_a_bool_of_any_kind(norms: Any) -> None:
    check_norms(norms)
    jax.eval_shape(check_norms, norms)


@pytest.mark.parametrize("norms", [None, 1, 1.0, "yes", np.ones(2, bool), jnp.array(1)])
def test_norms_are_nothing_else(norms: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="not True or False"):
        check_norms(norms)


@pytest.mark.parametrize(
    ("mask", "text"), [(np.ones(4), "mask is float64, not bool"), (np.ones(3, bool), "shape")]
)
def test_a_mask_has_a_bool_for_each_row(mask: Any, text: str) -> None:
    check_mask([True] * 4, (4,), where="a test")
    with pytest.raises(ArgumentError, match=text):
        check_mask(mask, (4,), where="a test")


def test_shapes_and_tracers_are_as_good_as_arrays() -> None:
    recipe = ft.make_recipe(nn.Dense(1), ft.OptSpec("sgd", 0.1), BATCH)
    state = jax.eval_shape(recipe.init)
    mask = jax.ShapeDtypeStruct((4,), bool)

    def call(state: Any, batch: Any, mask: Any) -> None:
        check_call(recipe, state, batch, where="a test", mask=mask)

    call(state, jax.eval_shape(lambda: BATCH), mask)
    jax.eval_shape(call, state, BATCH, mask)
    jax.eval_shape(call, state, BATCH, [True] * 4)
    call(state, BATCH, None)
    for wrong in (jax.ShapeDtypeStruct((3,), bool), jax.ShapeDtypeStruct((4, 1), bool)):
        with pytest.raises(ArgumentError, match="mask has shape"):
            jax.eval_shape(call, state, BATCH, wrong)
