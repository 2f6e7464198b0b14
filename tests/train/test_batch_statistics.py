"""Statistics of BatchNorm over several batches, against flax itself without momentum."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import ModelError
from flaxtrain.train import add_batch, no_batches
from flaxtrain.tree import named_leaves

RNG = np.random.default_rng(0)
BATCHES = [
    {"x": RNG.normal(i, 1 + i, (6, 4)).astype(np.float32), "label": np.arange(6) % 3}
    for i in range(3)
]
MASKS = [np.ones(6, bool), np.arange(6) < 2, np.arange(6) < 5]


class Layer(nn.Module):
    """The body of a scan."""

    train: bool
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        norm = nn.BatchNorm(not self.train, momentum=self.momentum, name="norm")
        return nn.relu(norm(nn.Dense(4, name="dense")(x))), None


class Net(nn.Module):
    """BatchNorm by itself, under `nn.jit`, and in a scanned stack under `nn.remat`."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(not train, momentum=self.momentum, name="first")(x)
        x = nn.jit(nn.BatchNorm)(not train, momentum=self.momentum, name="jitted")(x + x**2)
        stack = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = stack(train, self.momentum, name="stack")(x, None)
        return nn.Dense(3, name="head")(x)


def statistics(recipe: ft.Recipe, state: Any) -> Any:
    """Forms the statistics of all batches in a compiled function."""
    found = no_batches(recipe, state, BATCHES[0], MASKS[0])
    add = jax.jit(add_batch, static_argnums=0)
    for batch, mask in zip(BATCHES, MASKS, strict=True):
        found = add(recipe, state, found, batch, mask)
    return found


def by_flax(params: Any, stats: Any) -> dict[str, np.ndarray]:
    """Runs the rows that count through the module without momentum; joins mean and variance."""
    found, variables = [], {"params": params, "batch_stats": stats}
    run = jax.jit(lambda rows: Net(0.0).apply(variables, rows, True, mutable=["batch_stats"]))
    for batch, mask in zip(BATCHES, MASKS, strict=True):
        rows = batch["x"][mask]
        _, new = run(rows)
        found.append((len(rows), dict(named_leaves(new))))
    total = sum(rows for rows, _ in found)

    def mean(name: str, power: int = 1) -> np.ndarray:
        terms = [n * np.asarray(own[name], np.float64) ** power for n, own in found]
        return np.sum(terms, 0) / total

    joined = {name: mean(name) for name in found[0][1]}
    for name in joined:
        if name.endswith("/var"):
            centre = name.removesuffix("var") + "mean"
            joined[name] += mean(centre, 2) - mean(centre) ** 2
    return joined


def test_statistics_are_those_of_all_rows_of_all_batches() -> None:
    recipe = ft.make_recipe(Net(), ft.OptSpec("adam", 0.1), BATCHES[0])
    state = recipe.init(0)
    # The step traces the same modules, with their momentum, first.
    jax.eval_shape(partial(ft.train_step, recipe), state, BATCHES[0], MASKS[0])
    found = statistics(recipe, state)
    expected = by_flax(state.params, state.collections["batch_stats"])
    assert (int(found.batches), int(found.rows)) == (3, 13)
    ours = dict(named_leaves(found.values))
    assert ours.keys() == expected.keys()
    assert {name.split("/")[1] for name in ours} == {"first", "jitted", "stack"}
    for name, value in expected.items():
        # float32, and a variance is a difference of two means.
        bar = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=bar, err_msg=name)
    # What comes first is that of one big batch.
    pairs = zip(BATCHES, MASKS, strict=True)
    rows = np.concatenate([b["x"][m] for b, m in pairs]).astype(np.float64)
    for kind, value in {"mean": rows.mean(0), "var": rows.var(0)}.items():
        np.testing.assert_allclose(ours[f"batch_stats/first/{kind}"], value, rtol=1e-5)


def test_statistics_that_are_held_stay_as_they_are() -> None:
    freeze = [ft.Freeze("first"), ft.Freeze("jitted", mode="train")]
    recipe = ft.make_recipe(Net(), ft.OptSpec("adam", 0.1, freeze=freeze), BATCHES[0])
    state = recipe.init(0)
    stats = jax.tree.map(lambda leaf: leaf + 0.3, state.collections)
    found = statistics(recipe, state.replace(collections=stats))
    for name in ("first", "jitted"):
        for kind, value in stats["batch_stats"][name].items():
            np.testing.assert_array_equal(found.values["batch_stats"][name][kind], value)
    stacked = found.values["batch_stats"]["stack"]["norm"]["mean"]
    assert np.abs(stacked - stats["batch_stats"]["stack"]["norm"]["mean"]).min() > 1e-3


def test_dropout_has_a_key_of_its_own_in_every_batch() -> None:
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x))
            return nn.Dense(3)(nn.BatchNorm(not train)(x))

    recipe = ft.make_recipe(Dropped(), ft.OptSpec("adam", 0.1), BATCHES[0])
    state = recipe.init(0)
    found, means = no_batches(recipe, state, BATCHES[0]), []
    add = jax.jit(add_batch, static_argnums=0)
    for _ in range(2):
        found = add(recipe, state, found, BATCHES[0])
        means.append(np.asarray(jax.tree.leaves(found.values)[0]))
    # The same batch twice: with the same key the mean would stay.
    assert np.abs(means[1] - means[0]).max() > 0


def test_a_model_without_batchnorm_is_refused() -> None:
    recipe = ft.make_recipe(nn.Dense(3), ft.OptSpec("adam", 0.1), BATCHES[0])
    with pytest.raises(ModelError, match="no BatchNorm with running statistics"):
        no_batches(recipe, recipe.init(0), BATCHES[0])
