"""One run of the loss function, on parts of the parameters."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

import flaxtrain as ft
from flaxtrain.train import Rows, forward

BATCH = {"x": jnp.arange(12.0).reshape(4, 3) ** 2, "y": jnp.zeros((4, 2))}
SPEC = ft.OptSpec("sgd", learning_rate=0.1, freeze=("layers_0/**",))


def total(model: Any, batch: Any) -> Any:
    return jnp.sum((model(batch["x"]) - batch["y"]) ** 2, axis=-1)


def test_trained_parameters_stand_beside_the_frozen_ones() -> None:
    recipe = ft.make_recipe(
        nn.Sequential([nn.Dense(3), nn.BatchNorm(False), nn.Dense(2)]), SPEC, BATCH, loss=total
    )
    state, rows = recipe.init(), Rows.of(BATCH, None)
    trained, frozen = state.split_params()
    assert frozen.keys() == {"layers_0"} and "layers_0" not in trained
    doubled = jax.tree.map(lambda leaf: 2 * leaf, trained)
    found, collections = forward(recipe, state, rows, trainable=doubled)
    whole = state.replace(params={**doubled, **frozen})
    expected, _ = forward(recipe, whole, rows)
    assert found.loss.compute() == expected.loss.compute() > 0
    mean = collections["batch_stats"]["layers_1"]["mean"]
    assert jnp.any(mean != state.collections["batch_stats"]["layers_1"]["mean"])


def test_frozen_dicts_stay_what_they_are() -> None:
    recipe = ft.make_recipe(nn.Sequential([nn.Dense(3), nn.Dense(2)]), SPEC, BATCH, loss=total)
    state, rows = recipe.init(), Rows.of(BATCH, None)
    expected, _ = forward(recipe, state, rows)
    state = state.replace(params=freeze(state.params))
    trained, frozen = state.split_params()
    assert type(state.joined(trained, frozen)) is type(state.params)
    found, _ = forward(recipe, state, rows, trainable=trained)
    assert found.loss.compute() == expected.loss.compute()


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


def test_the_key_matters_in_training_only() -> None:
    recipe = ft.make_recipe(Drops(), ft.OptSpec("sgd", 0.1), BATCH, loss=total)
    state, rows = recipe.init(), Rows.of(BATCH, jnp.array([True, True, True, False]))

    def loss(seed: int, train: bool) -> float:
        output, _ = forward(recipe, state, rows, train=train, key=jax.random.key(seed))
        return float(output.loss.compute())

    assert loss(0, train=False) == loss(1, train=False)
    assert loss(0, train=True) != loss(1, train=True)
