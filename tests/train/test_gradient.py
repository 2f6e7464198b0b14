"""Microbatches: the gradient of the batch, whatever rows, weights and terms; in float64."""

from __future__ import annotations

import functools
from typing import Any

import clu.metrics
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.errors import BatchError
from flaxtrain.train import microbatch_key
from flaxtrain.train.keys import step_key
from tests.models import CNN, GPT, MLP
from tests.runs import AS_IT_COMES, FLOAT32_BAR, assert_agree, same
from tests.train.test_padding_is_exact import numbers

# Everything is float64, and sums are formed in another order.
BAR = 1e-12
# Of booleans and integers a mean is formed in float32.
assert_same = functools.partial(assert_agree, bar=BAR, narrow=("metrics/accuracy",))
ROWS = 24


def classification(shape: tuple[int, ...], rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(rows, *shape)), "label": rng.integers(0, 3, rows)}


def language() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 11, (ROWS, 7))
    return {"tokens": tokens[:, :-1], "label": tokens[:, 1:]}


def recipe_of(module: nn.Module, batch: Any, count: int, loss: Any = None) -> ft.Recipe:
    # The update is minus the gradient.
    spec = ft.OptSpec("sgd", learning_rate=1.0, accumulate=count)
    return ft.make_recipe(module, spec, batch, loss=loss)


def state_of(recipe: ft.Recipe) -> ft.TrainState:
    # Scales and embeddings that begin at zero would hide errors.
    state = recipe.init(seed=0)
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(1)
    params = tree.unflatten([jnp.asarray(0.3 * rng.normal(size=leaf.shape)) for leaf in leaves])
    return recipe.state(params, state.collections, jax.random.key(3))


def step(
    module: nn.Module, batch: Any, count: int, mask: Any = None, loss: Any = None
) -> dict[str, np.ndarray]:
    recipe = recipe_of(module, batch, count, loss)
    train_step = jax.jit(ft.train_step, static_argnums=0)
    return numbers(*train_step(recipe, state_of(recipe), batch, mask))


def weighted() -> dict[str, np.ndarray]:
    weight = np.random.default_rng(3).uniform(0.1, 2.0, ROWS)
    weight[::5] = 0.0
    weight[:3] = 0.0  # with eight microbatches the first one has no weight at all
    return {**classification((8,)), "weight": weight}


BATCHES = {
    "all rows": (classification((8,)), None),
    "padding": (classification((8,)), np.arange(ROWS) < 13),
    "weights": (weighted(), None),
    "weights and padding": (weighted(), np.arange(ROWS) < 13),
}


@functools.cache
def whole(name: str) -> dict[str, np.ndarray]:
    """Returns the numbers of a batch at once."""
    return step(MLP(), BATCHES[name][0], 1, BATCHES[name][1])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("all rows", 8),
        ("padding", 4),
        ("weights", 8),
        *(("weights and padding", count) for count in (2, 4, 8)),
    ],
)
def test_microbatches_give_the_numbers_of_the_batch(name: str, count: int) -> None:
    batch, mask = BATCHES[name]
    with jax.enable_x64(True):
        assert_same(whole(name), step(MLP(), batch, count, mask))


def several_terms(model: Any, batch: Any) -> Any:
    """Three means over different rows and tokens, and a regulariser."""
    logits = model(batch["tokens"])
    losses = ft.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    rows = model.weight if model.weight is not None else jnp.ones(losses.shape[0])
    first = ft.Mean.of(losses[:, 0], rows * (batch["tokens"][:, 0] > 4))
    odd = (batch["label"] % 2) * rows[:, None]
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model.params))
    total = ft.Mean.of(losses, rows) + 0.3 * first + 0.7 * ft.Mean.of(losses**2, odd)
    return total + 1e-2 * ft.Mean.penalty(squares), {"first": first}


def test_each_term_of_the_loss_of_a_scanned_transformer_is_divided_by_its_own_weight() -> None:
    module, mask = GPT(dropout=0.0), np.arange(ROWS) < 17
    with jax.enable_x64(True):
        at_once = step(module, language(), 1, mask, several_terms)
        for count in (2, 8):  # of eight microbatches the last two are padding
            assert_same(at_once, step(module, language(), count, mask, several_terms))


def test_a_collection_may_have_a_metric_with_the_name_of_the_loss() -> None:
    spec = ft.OptSpec("sgd", learning_rate=1.0, accumulate=2)
    average = clu.metrics.Average.from_output("loss")
    metrics = clu.metrics.Collection.create(loss=average)
    recipe = ft.make_recipe(MLP(), spec, BATCHES["all rows"][0], metrics=metrics)
    _, found = jax.jit(ft.train_step, static_argnums=0)(
        recipe, recipe.init(0), BATCHES["all rows"][0]
    )
    plain = recipe_of(MLP(), BATCHES["all rows"][0], 1)
    _, expected = jax.jit(ft.train_step, static_argnums=0)(
        plain, plain.init(0), BATCHES["all rows"][0]
    )
    loss = float(expected["loss"].compute())
    assert float(found["loss"].compute()) == pytest.approx(loss, rel=FLOAT32_BAR)


def by_hand(recipe: ft.Recipe, batch: Any, count: int) -> tuple[Any, Any, float]:
    """One SGD step over microbatches in plain flax: a loop, one `apply` for each."""
    state, module, size = state_of(recipe), recipe.module, ROWS // count

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def piece(params: Any, stats: Any, x: Any, label: Any, key: Any) -> Any:
        variables, rngs = {"params": params, **stats}, {"dropout": key}
        logits, new = module.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
        picked = jax.nn.log_softmax(logits)[jnp.arange(size), label]
        return -picked.sum() / ROWS, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), new)

    total, stats, value = None, state.collections, 0.0
    for index in range(count):
        rows = slice(index * size, (index + 1) * size)
        key = microbatch_key(step_key(state.rng, 0), index)
        (part, stats), grads = piece(
            state.params, stats, batch["x"][rows], batch["label"][rows], key
        )
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        value += float(part)
    return jax.tree.map(jnp.subtract, state.params, total), stats, value


def test_batch_norm_and_dropout_are_those_of_a_loop_written_by_hand() -> None:
    batch = classification((8, 8, 3))
    with jax.enable_x64(True):
        recipe = recipe_of(CNN(), batch, 4)
        state, metrics = jax.jit(ft.train_step, static_argnums=0)(
            recipe, state_of(recipe), batch
        )
        params, stats, loss = by_hand(recipe, batch, 4)
        deviations = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()),
            (state.params, state.collections),
            (params, stats),
        )
        assert max(jax.tree.leaves(deviations)) <= BAR
        assert abs(float(metrics["loss"].compute()) - loss) <= BAR


def test_a_microbatch_of_padding_alone_leaves_no_trace() -> None:
    """Statistics over no rows are NaN."""
    long = classification((8, 8, 3), rows=16)
    short = {name: leaf[:12] for name, leaf in long.items()}
    with jax.enable_x64(True):
        padded = step(CNN(), long, 4, mask=np.arange(16) < 12)
        assert_same(step(CNN(), short, 3), padded)


def test_two_runs_have_the_same_bits() -> None:
    batch = classification((8,))
    recipe = recipe_of(MLP(), batch, 4)
    train_step = jax.jit(ft.train_step, static_argnums=0)
    one, other = (numbers(*train_step(recipe, state_of(recipe), batch)) for _ in range(2))
    assert same(one, other)


def test_only_convolutions_are_unrolled_and_only_on_cpu() -> None:
    assert recipe_of(CNN(), classification((8, 8, 3)), 2).unroll
    assert not recipe_of(MLP(), classification((8,)), 2).unroll
    assert not recipe_of(GPT(), language(), 2).unroll


def test_the_memory_of_a_step_does_not_grow_with_the_number_of_microbatches() -> None:
    def temporary(count: int) -> int:
        batch = classification((64,), rows=32 * count)
        recipe = recipe_of(MLP((256, 256, 3)), batch, count)
        lowered = jax.jit(ft.train_step, static_argnums=0, donate_argnums=1).lower(
            recipe, jax.eval_shape(lambda: recipe.init(seed=0)), recipe.example
        )
        return (
            lowered.compile(compiler_options=AS_IT_COMES).memory_analysis().temp_size_in_bytes
        )

    # What is left to grow is a few numbers for each microbatch.
    assert temporary(16) <= 1.02 * temporary(2)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_traced() -> None:
    with pytest.raises(BatchError, match="24 rows do not divide into 5") as error:
        recipe_of(MLP(), classification((8,)), 5)
    assert "multiple of 5" in str(error.value)


def test_a_microbatch_without_weight_leaves_the_statistics_alone() -> None:
    """Its rows are real, but none of their tokens counts."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            return nn.BatchNorm(use_running_average=not train)(x)

    def loss(model: Any, batch: Any) -> Any:
        return ft.Mean.of(model(batch["x"]) ** 2, batch["tokens"])

    tokens = np.ones((ROWS, 8), np.float32)
    tokens[ROWS // 2 :] = 0.0
    batch = {"x": classification((8,))["x"], "tokens": tokens}
    half = {name: leaf[: ROWS // 2] for name, leaf in batch.items()}
    both = step(Normed(), batch, 2, loss=loss)
    alone = step(Normed(), half, 1, loss=loss)
    np.testing.assert_allclose(
        both["collections/batch_stats/BatchNorm_0/mean"],
        alone["collections/batch_stats/BatchNorm_0/mean"],
        rtol=1e-6,
    )


def test_a_term_without_any_weight_adds_nothing_to_the_gradient() -> None:
    def loss(model: Any, batch: Any) -> Any:
        out = model(batch["x"])
        return ft.Mean.of(out[:, 0] ** 2) + ft.Mean(jnp.sum(out[:, 1] ** 2), jnp.zeros(()))

    batch = {"x": classification((8,))["x"]}
    with jax.enable_x64(True):
        assert_same(step(MLP(), batch, 1, loss=loss), step(MLP(), batch, 4, loss=loss))


@pytest.mark.parametrize("tx", [optax.adam(0.1), ft.optim.adam(0.1)], ids=["optax", "ours"])
def test_objects_get_gradients_in_the_dtype_of_16_bit_parameters(tx: Any) -> None:
    batch = classification((8,))
    model = nn.Dense(3, param_dtype=jnp.bfloat16)
    recipe = ft.make_recipe(model, ft.OptSpec(tx, accumulate=2), batch)
    start = recipe.init(0)
    state, _ = jax.jit(ft.train_step, static_argnums=0)(recipe, start, batch)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, start)
    assert int(state.step) == 1
