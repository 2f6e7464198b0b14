"""Which batches have a mask, and which are refused."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.data.stream import ArrayStream
from flaxtrain.errors import LossError
from flaxtrain.loop.padding import check_padding, checked_mask

X = {"x": np.ones((5, 3), "float32"), "y": np.zeros((5, 1), "float32")}


def rows(model: Any, batch: Any) -> Any:
    return jnp.sum((model(batch["x"]) - batch["y"]) ** 2, axis=-1)


def scalar(model: Any, batch: Any) -> Any:
    return jnp.mean(rows(model, batch))


def recipe(loss: Any) -> Any:
    batch = {name: array[:3] for name, array in X.items()}
    return ft.make_recipe(nn.Dense(1), ft.OptSpec("sgd", 0.1), batch, loss=loss)


def stream(size: int) -> ArrayStream:
    return ArrayStream(ft.data.batches(X, batch_size=size))


def test_data_with_a_smaller_batch_has_masks_and_other_data_on_demand() -> None:
    exact = recipe(rows)
    check_padding(exact, stream(3))
    masks = [checked_mask(exact, stream(3), batch) for batch in stream(3).epoch(0)]
    assert np.array_equal(masks, [[True] * 3, [True, True, False]])
    (full,) = stream(5).epoch(0)
    assert checked_mask(exact, stream(5), full) is None
    assert np.all(np.asarray(checked_mask(exact, stream(5), full, always=True)))


def test_padding_is_refused_where_the_loss_is_a_scalar() -> None:
    inexact = recipe(scalar)
    with pytest.raises(LossError, match="scalar"):
        check_padding(inexact, stream(3))
    whole, smaller = stream(3).epoch(0)
    assert checked_mask(inexact, stream(3), whole, always=True) is None
    with pytest.raises(LossError, match="scalar"):
        checked_mask(inexact, stream(3), smaller)
    check_padding(inexact, stream(5))
