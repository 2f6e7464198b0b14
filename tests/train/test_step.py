"""One training step: accepted or rejected whole."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.tree import named_leaves
from tests.models import CNN, GPT
from tests.runs import AS_IT_COMES, bits

STEP = jax.jit(ft.train_step, static_argnums=0)
EVALUATE = jax.jit(ft.eval_step, static_argnums=0)
RNG = np.random.default_rng(0)
IMAGES = {
    "x": RNG.normal(size=(6, 8, 8, 1)).astype(np.float32),
    "label": RNG.integers(0, 3, 6).astype(np.int32),
}
HUGE = {**IMAGES, "x": np.full_like(IMAGES["x"], 1e30)}  # its square is infinite in float32


def recipe_of(nonfinite: Any = "raise", optimizer: str = "adam") -> ft.Recipe:
    spec = ft.OptSpec(optimizer, learning_rate=0.1, clip_norm=1.0, nonfinite=nonfinite)
    return ft.make_recipe(CNN(), spec, IMAGES)


@pytest.fixture(scope="module")
def skipping() -> ft.Recipe:
    return recipe_of("skip")


@pytest.fixture(scope="module")
def raising() -> ft.Recipe:
    return recipe_of("raise")


def kept(state: ft.TrainState) -> dict[str, bytes]:
    """Returns the bits of all but the counters."""
    return bits(state.replace(counters=None))


def counted(state: ft.TrainState) -> dict[str, int]:
    return {name: int(leaf) for name, leaf in named_leaves(state.counters)}


def test_a_good_step_changes_parameters_statistics_slots_and_counters(
    skipping: ft.Recipe,
) -> None:
    before = skipping.init(0)
    after, metrics = STEP(skipping, before, IMAGES)
    unchanged = {name for name, leaf in kept(before).items() if kept(after)[name] == leaf}
    # A bias before BatchNorm has a gradient of rounding size; everything else moves.
    # So do constant hyperparameters.
    still = {name for name in kept(before) if "Conv" in name or "hyperparams" in name}
    assert unchanged <= {"rng"} | still
    assert counted(after) == {
        "batches": 1,
        "examples": 6,
        "skipped": 0,
        "spikes": 0,
        "consecutive_skipped": 0,
        "halted": 0,
    }
    assert set(metrics) == {
        "loss",
        "accuracy",
        "grad_norm",
        "clipped_grad_norm",
        "update_norm",
        "param_norm",
        "learning_rate",
    }


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", "float32"), ("f32", "float32"), ("f64", "float64")]
)
def test_metrics_are_as_exact_as_the_gradient(precision: str, expected: str) -> None:
    tokens = {"tokens": np.zeros((4, 6), "int32"), "label": np.zeros((4, 6), "int32")}
    groups = [ft.Group("wte/**", name="table", lr_mult=2.0)]
    spec = ft.OptSpec("adamw", 0.1, clip_norm=1.0, accumulate=2, groups=groups)
    options = ft.StepOptions(precision=precision)
    with jax.enable_x64(True):
        recipe = ft.make_recipe(GPT(), spec, tokens, options=options)
        state = jax.eval_shape(recipe.init)
        _, metrics = jax.eval_shape(lambda *args: ft.train_step(recipe, *args), state, tokens)
        values = jax.eval_shape(
            lambda found: {name: metric.compute() for name, metric in found.items()}, metrics
        )
    assert {"accuracy", "grad_norm", "clipped_grad_norm/table"} <= values.keys()
    assert {leaf.dtype.name for leaf in values.values()} == {expected}


def test_statistics_that_overflow_reject_the_step_and_leave_every_bit(
    skipping: ft.Recipe,
) -> None:
    state, _ = STEP(skipping, skipping.init(0), IMAGES)
    after, metrics = STEP(skipping, state, HUGE)
    assert kept(after) == kept(state)
    assert counted(after) == {
        **counted(state),
        "batches": 2,
        "skipped": 1,
        "consecutive_skipped": 1,
    }
    weights = {name: float(jax.tree.leaves(metric)[-1]) for name, metric in metrics.items()}
    assert set(weights.values()) == {0.0}  # nothing of it reaches the window
    good, _ = STEP(skipping, after, IMAGES)
    assert counted(good)["consecutive_skipped"] == 0 and counted(good)["skipped"] == 1
    assert kept(good) == kept(STEP(skipping, state, IMAGES)[0])


def test_the_overflow_is_in_the_statistics_and_not_in_the_loss() -> None:
    """Loss and gradient alone would have accepted the step."""

    class Large(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(x)
            return nn.Dense(3)(jnp.clip(x, -1, 1))

    batch = {"x": np.full((6, 4), 1e30, np.float32), "label": IMAGES["label"]}
    recipe = ft.make_recipe(Large(), ft.OptSpec("sgd", 0.1, nonfinite="skip"), batch)
    state = recipe.init(0)
    after, _ = STEP(recipe, state, batch)
    assert int(after.counters.skipped) == 1 and kept(after) == kept(state)
    loss = EVALUATE(recipe, state, batch)["loss"].compute()
    assert np.isfinite(loss)


def test_after_a_halt_good_steps_are_rejected_too(raising: ft.Recipe) -> None:
    state, _ = STEP(raising, raising.init(0), IMAGES)
    halted, _ = STEP(raising, state, HUGE)
    assert counted(halted) == {
        **counted(state),
        "batches": 2,
        "skipped": 1,
        "consecutive_skipped": 1,
        "halted": 1,
    }
    later, metrics = STEP(raising, halted, IMAGES)
    assert bits(later) == bits(halted)
    assert kept(later) == kept(state)
    assert float(metrics["grad_norm"].weight) == 0.0


def test_skip_and_raise_give_the_same_bits_on_good_data(
    skipping: ft.Recipe, raising: ft.Recipe
) -> None:
    states = [skipping.init(0), raising.init(0)]
    for _ in range(3):
        states = [
            STEP(recipe, state, IMAGES)[0]
            for recipe, state in zip((skipping, raising), states, strict=True)
        ]
    assert bits(states[0]) == bits(states[1])


@pytest.mark.parametrize("traced", [False, True])
def test_norms_cost_nothing_but_time(skipping: ft.Recipe, traced: bool) -> None:
    step = jax.jit(
        lambda state, batch, norms: ft.train_step(skipping, state, batch, norms=norms),
        static_argnums=() if traced else 2,
        compiler_options=AS_IT_COMES,
    )
    with_norms, reported = step(skipping.init(0), IMAGES, True)
    without, silent = step(skipping.init(0), IMAGES, False)
    assert bits(with_norms) == bits(without)
    for name in ("update_norm", "param_norm", "learning_rate"):
        assert float(reported[name].weight) == 1.0 and float(silent[name].weight) == 0.0
    assert float(silent["grad_norm"].weight) == 1.0


def test_the_reported_norms_are_those_of_the_step(skipping: ft.Recipe) -> None:
    before = skipping.init(0)
    after, metrics = STEP(skipping, before, IMAGES)

    def norm(tree: Any) -> float:
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        return float(np.sqrt(sum((leaf**2).sum() for leaf in leaves)))

    update = jax.tree.map(lambda new, old: new - old, after.params, before.params)
    # float32 sums; the difference of parameters has lost digits beside the update itself.
    assert float(metrics["update_norm"].compute()) == pytest.approx(norm(update), rel=1e-4)
    assert float(metrics["param_norm"].compute()) == pytest.approx(
        norm(before.params), rel=1e-6
    )
    assert float(metrics["learning_rate"].compute()) == pytest.approx(0.1, rel=1e-6)


class WithTable(nn.Module):
    """A lookup table of integers among the parameters, as quantised layers have."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        order = self.param("order", lambda key: jnp.array([2, 0, 1], jnp.int32))
        return nn.Dense(2)(x[:, order])


def test_an_integer_parameter_is_used_and_not_trained() -> None:
    batch = {"x": RNG.normal(size=(4, 3)).astype(np.float32), "label": np.array([0, 1, 0, 1])}
    batch["label"] = batch["label"].astype(np.int32)
    spec = ft.OptSpec("adamw", 0.1, weight_decay=0.1, decay="all")
    recipe = ft.make_recipe(WithTable(), spec, batch)
    state = recipe.init(0)
    assert state.trainable == {("Dense_0", "kernel"), ("Dense_0", "bias")}
    after, _ = STEP(recipe, state, batch)
    assert after.params["order"].dtype == jnp.int32
    assert after.params["order"].tolist() == [2, 0, 1]
    assert not np.array_equal(
        after.params["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"]
    )
    shapes = {leaf.shape for leaf in jax.tree.leaves(after.opt_state)}
    assert (3,) not in shapes  # no slots for it


def test_a_batch_of_weight_zero_changes_nothing_and_is_no_mistake(raising: ft.Recipe) -> None:
    empty = {**IMAGES, "weight": np.zeros(6, np.float32)}
    recipe = ft.make_recipe(CNN(), ft.OptSpec("adam", 0.1), empty)
    state = recipe.init(0)
    after, _ = STEP(recipe, state, empty)
    assert kept(after) == kept(state)
    assert counted(after) == {**counted(state), "batches": 1}
    # The same through the mask of padding.
    state = raising.init(0)
    after, _ = STEP(raising, state, IMAGES, np.zeros(6, bool))
    assert kept(after) == kept(state) and counted(after) == {**counted(state), "batches": 1}


def test_examples_are_counted_without_padding_and_stop_at_the_largest_number(
    skipping: ft.Recipe,
) -> None:
    state = skipping.init(0)
    most = np.iinfo(np.int32).max
    mask = np.arange(6) < 4
    state, _ = STEP(skipping, state, IMAGES, mask)
    assert int(state.counters.examples) == 4
    full = state.counters.replace(examples=jnp.asarray(most - 3, jnp.int32))
    state, _ = STEP(skipping, state.replace(counters=full), IMAGES, mask)
    assert int(state.counters.examples) == most


def test_evaluation_is_in_evaluation_mode_and_changes_nothing(skipping: ft.Recipe) -> None:
    state, _ = STEP(skipping, skipping.init(0), IMAGES)
    before = bits(state)
    first = EVALUATE(skipping, state, IMAGES)["loss"].compute()
    moved = state.replace(step=state.step + 5)  # dropout would draw other numbers
    assert float(first) == float(EVALUATE(skipping, moved, IMAGES)["loss"].compute())
    assert bits(state) == before
    logits = ft.predict_step(skipping, state, IMAGES)
    by_hand = CNN().apply({"params": state.params, **state.collections}, IMAGES["x"])
    assert np.array_equal(logits, by_hand)
