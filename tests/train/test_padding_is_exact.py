"""Padding and ragged ends change nothing: gradient, metrics and statistics, in float64."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.tree import named_leaves
from tests.models import CNN, GPT, MLP
from tests.runs import assert_agree

# Everything is float64; sums over 12 instead of 16 rows are formed in another order.
BAR = 1e-12
assert_same = functools.partial(assert_agree, bar=BAR)
ROWS, PADDED = 12, 16


def classification(shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(ROWS, *shape)), "label": rng.integers(0, classes, ROWS)}


def language() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (ROWS, 7))
    return {"tokens": tokens[:, :-1], "label": tokens[:, 1:]}


CASES = {
    "MLP": (MLP(), classification((8,), 4)),
    "CNN with BatchNorm": (CNN(), classification((8, 8, 3), 3)),
    "transformer with dropout": (GPT(), language()),
}


def pad(batch: dict[str, np.ndarray], fill: str) -> dict[str, np.ndarray]:
    def padded(leaf: np.ndarray) -> np.ndarray:
        extra = np.repeat(leaf[-1:], PADDED - ROWS, axis=0)
        if fill == "nan" and leaf.dtype.kind == "f":
            extra = np.full_like(extra, np.nan)
        if fill == "nan" and leaf.dtype.kind == "i":
            extra = np.full_like(extra, 10_000)  # a class and a token that do not exist
        return np.concatenate([leaf, extra])

    return {name: padded(leaf) for name, leaf in batch.items()}


COMPILED = jax.jit(ft.train_step, static_argnums=0)
STARTS: dict[Any, tuple[ft.Recipe, Any]] = {}
"""What is compiled for batches of one layout, and the state that they start from."""


def start(module: nn.Module, batch: Any) -> tuple[ft.Recipe, Any]:
    layout = tuple((name, leaf.shape, leaf.dtype) for name, leaf in batch.items())
    if (module, layout) not in STARTS:
        STARTS[module, layout] = start_anew(module, batch)
    return STARTS[module, layout]


def start_anew(module: nn.Module, batch: Any) -> tuple[ft.Recipe, Any]:
    recipe = ft.make_recipe(module, ft.OptSpec("sgd", learning_rate=1.0), batch)
    state = recipe.init(seed=0)
    # Zero-initialised scales and embeddings would hide errors; all leaves become random.
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(1)
    params = tree.unflatten([jnp.asarray(0.3 * rng.normal(size=leaf.shape)) for leaf in leaves])
    return recipe, recipe.state(params, state.collections, jax.random.key(3))


def step(module: nn.Module, batch: Any, mask: Any) -> tuple[Any, Any]:
    """Makes one SGD step of learning rate 1: the update is minus the gradient."""
    return COMPILED(*start(module, batch), batch, mask)


def numbers(state: Any, metrics: Any) -> dict[str, np.ndarray]:
    found = {f"params/{name}": leaf for name, leaf in named_leaves(state.params)}
    found |= {f"collections/{name}": leaf for name, leaf in named_leaves(state.collections)}
    found |= {f"metrics/{name}": metric.compute() for name, metric in metrics.items()}
    return {name: np.asarray(leaf, np.float64) for name, leaf in found.items()}


@functools.cache
def plain(name: str) -> dict[str, np.ndarray]:
    """Returns the numbers of the batch without padding."""
    found = numbers(*step(*CASES[name], None))
    assert all(np.isfinite(value).all() for value in found.values())
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fill", ["repeat", "nan"])
def test_padding_rows_change_neither_gradient_nor_metrics_nor_statistics(
    name: str, fill: str
) -> None:
    module, batch = CASES[name]
    with jax.enable_x64(True):
        mask = np.arange(PADDED) < ROWS
        padded = numbers(*step(module, pad(batch, fill), mask))
        assert_same(plain(name), padded)


@pytest.mark.parametrize("name", CASES)
def test_a_mask_in_the_batch_is_the_same_as_leaving_the_rows_out(name: str) -> None:
    module, batch = CASES[name]
    with jax.enable_x64(True):
        masked = {**pad(batch, "nan"), "mask": np.arange(PADDED) < ROWS}
        assert_same(plain(name), numbers(*step(module, masked, None)))


def test_the_row_mask_is_what_makes_batch_norm_exact() -> None:
    """Without it the statistics see the padding: the test above can fail."""
    name = "CNN with BatchNorm"
    module, batch = CASES[name]
    with jax.enable_x64(True):
        expected = plain(name)
        padded = numbers(*step(module, pad(batch, "repeat"), None))
    with pytest.raises(AssertionError):
        assert_same(expected, padded)


def test_example_weights_of_two_are_the_same_as_repeating_the_rows() -> None:
    module, batch = CASES["MLP"]
    weight = np.where(np.arange(ROWS) < 4, 2.0, 1.0)
    with jax.enable_x64(True):
        weighted = numbers(*step(module, {**batch, "weight": weight}, None))
        repeated = {name: np.concatenate([leaf, leaf[:4]]) for name, leaf in batch.items()}
        assert_same(weighted, numbers(*step(module, repeated, None)))


def test_a_batch_without_any_weight_changes_nothing_but_the_counters() -> None:
    module, batch = CASES["CNN with BatchNorm"]
    empty = {**batch, "mask": np.zeros(ROWS, bool)}
    recipe = ft.make_recipe(module, ft.OptSpec("adam", learning_rate=1.0), empty)
    before = recipe.init(seed=0)
    after, metrics = jax.jit(ft.train_step, static_argnums=0)(recipe, before, empty)
    assert int(after.counters.batches) == 1
    assert int(after.counters.skipped) == int(after.counters.halted) == int(after.step) == 0
    for one, other in zip(
        jax.tree.leaves((before.params, before.collections, before.opt_state)),
        jax.tree.leaves((after.params, after.collections, after.opt_state)),
        strict=True,
    ):
        assert np.array_equal(one, other)
    assert float(metrics["loss"].terms[0].weight) == 0
