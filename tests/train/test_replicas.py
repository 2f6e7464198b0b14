"""What a step knows of other devices, with the axis of `jax.vmap` in their place.

An output of `jax.vmap` that has no axis is the same on all replicas, whatever the numbers are.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ModelError
from flaxtrain.metrics import Mean, Std
from flaxtrain.train.replicas import ONE_PROGRAM, AxisReplicas, OneProgram, Replicas
from flaxtrain.train.replicated import with_replicas
from flaxtrain.train.rows import Rows
from tests.models import CNN, MLP
from tests.runs import refused

AXIS = AxisReplicas("data")


def on_replicas(function: Any, *args: Any) -> Any:
    """Runs a function on replicas; what it returns has to be the same on all of them."""
    return jax.vmap(function, out_axes=None, axis_name="data")(*args)


def batch_of(shape: tuple[int, ...], rows: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, *shape)).astype("float32")
    return {"x": x, "label": rng.integers(0, 3, rows).astype("int32")}


def test_replicas_are_hashable_values() -> None:
    same, other = AxisReplicas("data"), AxisReplicas("batch")
    assert same == AXIS and hash(same) == hash(AXIS) and other != AXIS
    assert Replicas() == ONE_PROGRAM and hash(ONE_PROGRAM) == hash(Replicas())


def test_microbatches_of_one_program_are_spread() -> None:
    spread = OneProgram(
        lambda tree: jax.tree.map(lambda leaf: -leaf, tree), lambda rngs: nullcontext({})
    )
    assert spread.microbatches(jnp.arange(4), 2).tolist() == [[0, -1], [-2, -3]]


def test_a_replica_without_real_rows_takes_the_first_one_of_all_replicas() -> None:
    batch = {"x": jnp.full((3, 2, 1), jnp.nan).at[1, 1].set(7.0), "on": jnp.ones((3, 2), bool)}
    mask = jnp.zeros((3, 2), bool).at[1, 1].set(True)

    def kept(batch: Any, mask: Any) -> Any:
        rows = Rows.of(batch, mask, AXIS)
        assert rows.batch["on"].dtype == bool
        return rows.batch["x"], AXIS.sum(rows.examples)

    x, examples = jax.vmap(kept, axis_name="data", out_axes=(0, None))(batch, mask)
    assert (x == 7).all() and examples == 1


def test_metrics_are_merged_in_the_order_of_the_replicas() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    found = on_replicas(
        lambda row: AXIS.merged({"mean": Mean.of(row), "std": Std.of(row)}), values
    )
    assert float(found["mean"].compute()) == pytest.approx(values.mean(), rel=1e-5)
    assert float(found["std"].compute()) == pytest.approx(values.std(), rel=1e-5)
    assert found["mean"].weight == 12


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_a_sum_over_replicas_has_its_gradient_on_each_of_them(mode: Any) -> None:
    x = jnp.arange(1.0, 4.0)

    def slope(x: Any) -> Any:
        def loss(w: Any) -> Any:
            w = AXIS.same(w)
            return AXIS.sum((w * x - AXIS.sum(w * x)) ** 3)

        return mode(loss)(0.5)

    def whole(w: Any) -> Any:
        return jnp.sum((w * x - jnp.sum(w * x)) ** 3)

    # Under vmap the cotangents of a sum have an axis, though they are equal.
    found = jax.vmap(slope, axis_name="data")(x)
    assert np.allclose(found, jax.grad(whole)(0.5), rtol=1e-6)


def test_keys_differ() -> None:
    keys = jax.vmap(lambda _: AXIS.key(jax.random.key(0)), axis_name="data")(jnp.arange(8))
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 8


@pytest.mark.parametrize("module", [CNN(), nn.Sequential([MLP(), nn.BatchNorm(False)])])
def test_all_that_a_step_returns_is_the_same_on_all_replicas(module: nn.Module) -> None:
    batch = batch_of((4, 4, 3))
    spec = ft.OptSpec("adam", 1e-3, clip_norm=1.0, accumulate=2, ema=0.9)
    recipe = with_replicas(ft.make_recipe(module, spec, batch), AXIS)
    mapped = jax.vmap(
        lambda *args: ft.train_step(recipe, *args), (None, 0, 0), None, axis_name="data"
    )
    two = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), batch)
    state = jax.eval_shape(recipe.init)
    after, _ = jax.eval_shape(mapped, state, two, np.ones((2, 8), bool))
    shapes = [leaf.shape for leaf in jax.tree.leaves(after)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(state)]


class Keeping(nn.Module):
    """Keeps a mean of its inputs, which flax's BatchNorm did not form."""

    what: str

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        kept = self.variable("kept", "value", lambda: jnp.zeros(()))
        count = self.variable("kept", "count", lambda: jnp.zeros(()))
        if train:
            noise = jax.random.normal(self.make_rng("dropout")) if self.what == "noise" else 0.0
            kept.value = {"rows": x.mean(), "noise": noise, "count": jnp.ones(())}[self.what]
            count.value = count.value + 1
        self.sow("intermediates", "seen", x.mean())
        return nn.Dense(3)(x)


@pytest.mark.parametrize("what", ["rows", "noise"])
def test_a_variable_that_would_differ_between_replicas_is_refused(what: str) -> None:
    recipe = ft.make_recipe(Keeping(what), ft.OptSpec("sgd", 0.1), batch_of((4,)))
    refused(lambda: with_replicas(recipe, AXIS), ModelError, "kept/value")


def test_variables_that_count_and_what_is_sown_are_let_pass() -> None:
    recipe = ft.make_recipe(Keeping("count"), ft.OptSpec("sgd", 0.1), batch_of((4,)))
    assert with_replicas(recipe, AXIS).replicas == AXIS
    assert with_replicas(recipe, ONE_PROGRAM).replicas == ONE_PROGRAM


def test_a_module_that_is_frozen_at_first_is_judged_as_it_will_be() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            return nn.Dense(3)(Keeping("rows", name="keeping")(x, train))

    spec = ft.OptSpec("sgd", 0.1, freeze=[ft.Freeze("keeping/**", until=5)])
    recipe = ft.make_recipe(Model(), spec, batch_of((4,)))
    refused(lambda: with_replicas(recipe, AXIS), ModelError, "keeping/value")
    always = ft.make_recipe(
        Model(), ft.OptSpec("sgd", 0.1, freeze="keeping/**"), batch_of((4,))
    )
    assert with_replicas(always, AXIS).replicas == AXIS


def test_batch_norm_of_another_writing_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(nn.BatchNorm, "__call__", lambda self, x: x)
    refused(lambda: AXIS.model_context({}), ModelError, "nn.BatchNorm")
