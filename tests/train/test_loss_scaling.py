"""Loss scaling in training: float16 gradients that would vanish, and those that overflow."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import NonFiniteError
from flaxtrain.precision import LossScale

FACTOR = 1e-7
"""Of a loss multiplied by it, all gradients in float16 are zero: the smallest is 6e-8."""


class Half(nn.Module):
    """An MLP that computes in float16; `[batch, 8, 8, 1] -> [batch, 10]`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(32, dtype=jnp.float16)(x))
        return nn.Dense(10, dtype=jnp.float16)(x)


def small_loss(model: Any, batch: Any) -> Any:
    logits = model(batch["image"])
    loss = ft.losses.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), batch["label"]
    )
    return FACTOR * loss, {"accuracy": jnp.argmax(logits, -1) == batch["label"]}


def accuracy(scale: LossScale, model: nn.Module | None = None) -> float:
    """Accuracy on the digits that were trained on, after three epochs."""
    data, _ = ft.data.digits()
    # Adam forgets the factor but for eps.
    spec = ft.OptSpec("adam", 3e-3, eps=1e-8 * FACTOR)
    trainer = ft.Trainer(
        Half() if model is None else model, spec, small_loss, loss_scale=scale, verbose=False
    )
    trainer.fit(data, epochs=3, batch_size=64)
    assert trainer.compilations["train"] == 1
    return trainer.evaluate(data)["accuracy"]


class Single(Half):
    """The same in float32."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def test_gradients_that_vanish_in_float16_are_saved_by_a_scale() -> None:
    single = accuracy(ft.NoScale(), Single())
    assert single > 0.85
    assert accuracy(ft.FixedScale(1.0)) < 0.3, "nothing is learnt"
    assert accuracy(ft.DynamicScale(init=2.0**24)) >= single - 0.02


def recipe_of(nonfinite: Any, scale: LossScale) -> ft.Recipe:
    batch = {"x": np.ones((4, 3), np.float32), "target": np.ones((4, 2), np.float32)}
    spec = ft.OptSpec("adam", 0.1, nonfinite=nonfinite)
    return ft.make_recipe(nn.Dense(2), spec, batch, options=ft.StepOptions(loss_scale=scale))


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_an_overflow_is_a_skip_until_the_scale_is_at_its_minimum(nonfinite: str) -> None:
    scale = ft.DynamicScale(init=4.0, min=1.0, growth_interval=1)
    recipe = recipe_of(nonfinite, scale)
    state, step = recipe.init(seed=0), jax.jit(ft.train_step, static_argnums=0)
    bad = {"x": np.full((4, 3), np.inf, np.float32), "target": np.ones((4, 2), np.float32)}
    seen = []
    for _ in range(4):
        state, metrics = step(recipe, state, bad)
        seen.append((float(metrics["loss_scale"].compute()), int(state.counters.halted)))
    halts = int(nonfinite == "raise")
    assert seen[:3] == [(4.0, 0), (2.0, 0), (1.0, halts)]
    # Once halted, nothing is tried any more.
    assert int(state.counters.skipped) == (3 if halts else 4)
    assert float(state.loss_scale.value) == 1.0


@pytest.mark.parametrize("scale", [ft.NoScale(), ft.FixedScale(8.0)])
def test_without_a_scale_that_can_fall_the_first_bad_step_halts(scale: LossScale) -> None:
    recipe = recipe_of("raise", scale)
    bad = {"x": np.full((4, 3), np.nan, np.float32), "target": np.ones((4, 2), np.float32)}
    state, metrics = jax.jit(ft.train_step, static_argnums=0)(recipe, recipe.init(0), bad)
    assert int(state.counters.halted) == 1
    assert "loss_scale" not in metrics


def test_the_scale_is_logged_and_survives_stopping(tmp_path: Any) -> None:
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    data = {"x": x, "target": x[:, :1]}

    def trainer() -> ft.Trainer:
        scale = ft.DynamicScale(init=8.0, growth_interval=3)
        spec = ft.OptSpec("sgd", 0.01)
        return ft.Trainer(
            nn.Dense(1), spec, loss_scale=scale, workdir=tmp_path, log_every=1, verbose=False
        )

    first = trainer().fit(data, steps=5, batch_size=8)
    assert [row["loss_scale"] for row in first.history.train] == [8.0, 8.0, 8.0, 16.0, 16.0]
    second = trainer().fit(data, steps=8, batch_size=8)
    assert [row["loss_scale"] for row in second.history.train] == [16.0, 32.0, 32.0]


def test_one_trainer_initialises_twice_with_the_same_scale() -> None:
    """The state is donated; the scale of the options is not."""
    recipe = recipe_of("raise", ft.DynamicScale())
    step = jax.jit(ft.train_step, static_argnums=0, donate_argnums=1)
    batch = {"x": np.ones((4, 3), np.float32), "target": np.ones((4, 2), np.float32)}
    for _ in range(2):
        state, _ = step(recipe, recipe.init(seed=0), batch)
    assert int(state.step) == 1


def test_a_number_that_is_no_scale_is_refused() -> None:
    with pytest.raises(ft.FlaxtrainError, match=r"loss_scale=1024.0 is a float"):
        ft.Trainer(nn.Dense(1), ft.OptSpec("sgd", 0.1), loss_scale=1024.0)  # type: ignore[arg-type]


def test_an_overflow_that_does_not_go_away_ends_the_run_with_its_last_good_state() -> None:
    x = np.ones((32, 3), np.float32)
    x[16:] = np.inf
    trainer = ft.Trainer(
        nn.Dense(1),
        ft.OptSpec("sgd", 0.01),
        loss_scale=ft.DynamicScale(init=2.0, growth_interval=100),
        verbose=False,
        log_every=1,
    )
    data = ft.data.batches({"x": x, "target": np.ones((32, 1), np.float32)}, batch_size=8)
    with pytest.raises(NonFiniteError):
        trainer.fit(data, steps=4)
    assert trainer.state is not None and int(trainer.state.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state.params))


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_tiny_in_float16_parameters_is_not_lost_when_the_scale_is_taken_away(
    count: int,
) -> None:
    model = nn.Dense(2, param_dtype=jnp.float16, dtype=jnp.float16)
    batch = {"x": np.ones((8, 3), np.float32)}

    def loss(model: Any, batch: Any) -> Any:
        return 1e-9 * model(batch["x"]).astype(jnp.float32)[:, 0] ** 2

    options = ft.StepOptions(ft.FixedScale(2.0**30))
    spec = ft.OptSpec("adam", 0.1, accumulate=count)
    recipe = ft.make_recipe(model, spec, batch, loss=loss, options=options)
    _, metrics = jax.jit(ft.train_step, static_argnums=0)(recipe, recipe.init(0), batch)
    assert 0 < float(metrics["grad_norm"].compute()) < 6e-8  # below float16's smallest number
