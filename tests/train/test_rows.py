"""Rows that don't count, in models for which it matters what stands in them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft


class Standardised(nn.Module):
    """Divides by something that is 0 for a row of zeros."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return nn.Dense(3)(x / jnp.linalg.norm(x, axis=-1, keepdims=True))


class Jitted(nn.Module):
    """BatchNorm inside `nn.jit`, whose cache does not know of the row mask."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = nn.jit(nn.BatchNorm)(use_running_average=not train, momentum=0.0, name="norm")
        return nn.Dense(3)(norm(x))


class OwnNorm(nn.BatchNorm):
    """A subclass with a narrower `__call__`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]  # narrower on purpose
        return super().__call__(x)


def arrays(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(rows, 5)).astype("float32"),
        "label": rng.integers(0, 3, rows).astype("int32"),
    }


def fit(module: nn.Module, data: Any, batch_size: int) -> ft.TrainState:
    trainer = ft.Trainer(module, ft.OptSpec("sgd", learning_rate=0.1), verbose=False)
    return trainer.fit(ft.data.batches(data, batch_size), epochs=1).state


def test_a_model_that_divides_by_its_rows_trains_on_a_ragged_end() -> None:
    ragged = fit(Standardised(), arrays(10), 4)
    assert int(ragged.step) == 3
    recipe = ft.make_recipe(Standardised(), ft.OptSpec("sgd", learning_rate=0.1), arrays(4))
    state = recipe.init(0)
    step = jax.jit(ft.train_step, static_argnums=0)
    for start in (0, 4, 8):
        batch = {name: leaf[start : min(start + 4, 10)] for name, leaf in arrays(10).items()}
        state, _ = step(recipe, state, batch)
    for one, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(ragged.params), strict=True
    ):
        # float32, sums over 2 instead of 4 rows
        assert np.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", [Jitted(), OwnNorm(use_running_average=False, momentum=0.0)])
def test_batch_statistics_are_of_the_real_rows_however_the_norm_is_wrapped(
    module: nn.Module,
) -> None:
    if isinstance(module, OwnNorm):
        module = nn.Sequential([module, nn.Dense(3)])
    fit(module, arrays(16), 16)  # warms the cache of nn.jit with another mask
    for rows in (10, 7):
        data = arrays(rows)
        statistics = fit(module, {k: np.concatenate([v, v[:1]]) for k, v in data.items()}, 16)
        real = np.concatenate([data["x"], data["x"][:1]])
        (found,) = (
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(statistics.collections)
            if "mean" in jax.tree_util.keystr(path)
        )
        assert np.allclose(found, real.mean(0), atol=1e-6)


def test_a_term_without_weight_adds_nothing() -> None:
    def loss_fn(model: ft.BoundModel, batch: Any) -> Any:
        logits = model(batch["x"])
        loss = ft.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        labelled = ft.Mean.of(loss, jnp.zeros(4))
        return labelled + 0.1 * ft.Mean.of(logits[:, 0] ** 2, jnp.ones(4))

    recipe = ft.make_recipe(
        nn.Dense(3), ft.OptSpec("sgd", learning_rate=0.1), arrays(4), loss=loss_fn
    )
    before = recipe.init(0)
    after, metrics = jax.jit(ft.train_step, static_argnums=0)(recipe, before, arrays(4))
    assert int(after.step) == 1
    assert np.isfinite(float(metrics["loss"].compute()))
    moved = np.abs(np.asarray(after.params["kernel"] - before.params["kernel"])).max(0)
    assert moved[0] > 0 and moved[1] == moved[2] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norms_are_formed_in_float32(dtype: str) -> None:
    """A gradient of entries 758 overflows when it is squared in float16."""

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            w = self.param("w", nn.initializers.ones, (64,), jnp.dtype(dtype))
            return (x * 758.0).astype(dtype) @ w

    def loss_fn(model: ft.BoundModel, batch: Any) -> Any:
        return model(batch["x"]).astype("float32")

    batch = {"x": np.ones((4, 64), "float32") / 1.0}
    spec = ft.OptSpec("sgd", learning_rate=1.0, clip_norm=1.0)
    recipe = ft.make_recipe(Scaled(), spec, batch, loss=loss_fn)
    _, metrics = jax.jit(ft.train_step, static_argnums=0)(recipe, recipe.init(0), batch)
    assert float(metrics["grad_norm"].compute()) == pytest.approx(758 * 8, rel=4e-3)
    # The clipped update has the norm 1 up to float32, not up to three digits.
    assert float(metrics["update_norm"].compute()) == pytest.approx(1.0, rel=1e-5)


def test_sown_losses_count_in_training_and_in_evaluation() -> None:
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            self.sow("losses", "size", (x**2).mean(-1))
            return nn.Dense(3)(x)

    def loss_fn(model: ft.BoundModel, batch: Any) -> Any:
        logits = model(batch["x"])
        (size,) = model.sown["losses"]["size"]
        return size + 0 * logits.sum(-1)

    recipe = ft.make_recipe(
        Sowing(), ft.OptSpec("sgd", learning_rate=0.1), arrays(4), loss=loss_fn
    )
    state = recipe.init(0)
    assert state.collections == {}
    expected = (arrays(4)["x"] ** 2).mean()
    _, metrics = ft.train_step(recipe, state, arrays(4))
    evaluated = ft.eval_step(recipe, state, arrays(4))
    assert float(metrics["loss"].compute()) == pytest.approx(expected, rel=1e-5)
    assert float(evaluated["loss"].compute()) == pytest.approx(expected, rel=1e-5)
