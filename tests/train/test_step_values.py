"""Norms before and after clipping, and clipping as a part of a step that may be rejected."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxtrain as ft
from flaxtrain.tree import flatten, global_norm
from tests.runs import FLOAT32_BAR, bits, counted

STEP = jax.jit(ft.train_step, static_argnums=0)
RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(8, 5)).astype(np.float32),
    "label": RNG.integers(0, 3, 8).astype(np.int32),
}
BAD = {**BATCH, "x": np.full_like(BATCH["x"], np.nan)}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(7, name="body")(x)))


def recipe_of(*args: Any, **kwargs: Any) -> ft.Recipe:
    return ft.make_recipe(Net(), ft.OptSpec(*args, nonfinite="skip", **kwargs), BATCH)


def gradient(recipe: ft.Recipe, state: ft.TrainState) -> dict[Any, np.ndarray]:
    def loss(params: Any) -> Any:
        logits: Any = Net().apply({"params": params}, BATCH["x"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"]))

    grads = flatten(jax.grad(loss)(state.params))
    return {path: np.asarray(leaf, np.float64) for path, leaf in grads.items()}


def norm(*arrays: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(a, np.float64))) for a in arrays)))


def computed(metrics: Any) -> dict[str, float]:
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_the_norm_is_clipped_once_over_all_groups_and_told_before_and_after() -> None:
    groups = [ft.Group("head", lr_mult=1.0, clip=ft.ClipValue(0.01))]
    recipe = recipe_of("sgd", 1.0, clip_norm=0.2, groups=groups)
    state = recipe.init(0)
    grads = gradient(recipe, state)
    after, metrics = STEP(recipe, state, BATCH)
    found = computed(metrics)
    # The oracle: one factor for all, by the norm of all; then the entries of the head.
    before = norm(*grads.values())
    assert before > 0.4, "the norm of each group alone is clipped by another factor"
    clipped = {path: 0.2 / before * g for path, g in grads.items()}
    head = {p: np.clip(g, -0.01, 0.01) for p, g in clipped.items() if p[0] == "head"}
    body = {p: g for p, g in clipped.items() if p[0] == "body"}
    assert any(np.any(head[p] != clipped[p]) for p in head)
    for path, g in {**head, **body}.items():
        moved = np.asarray(flatten(state.params)[path]) - np.asarray(
            flatten(after.params)[path]
        )
        np.testing.assert_allclose(moved, g, rtol=1e-4, atol=1e-6)  # of a difference
    wanted = {
        "grad_norm": before,
        "grad_norm/head": norm(*(grads[p] for p in head)),
        "grad_norm/default": norm(*(grads[p] for p in body)),
        "clipped_grad_norm": norm(*head.values(), *body.values()),
        "clipped_grad_norm/head": norm(*head.values()),
        "clipped_grad_norm/default": norm(*body.values()),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
    # A learning rate of 1: what was clipped is the update.
    assert found["update_norm"] == pytest.approx(found["clipped_grad_norm"], rel=1e-6)


@pytest.mark.parametrize(
    "clip",
    [ft.ClipNorm(0.1), ft.ClipValue(0.01), ft.ClipBlockRms(0.02), ft.AdaptiveClip(0.01)],
    ids=repr,
)
def test_every_kind_tells_the_norm_that_the_optimizer_gets(clip: Any) -> None:
    recipe = recipe_of("sgd", 1.0, clip=clip)
    _, metrics = STEP(recipe, recipe.init(0), BATCH)
    found = computed(metrics)
    assert found["clipped_grad_norm"] == pytest.approx(found["update_norm"], rel=1e-6)
    assert found["clipped_grad_norm"] < 0.9 * found["grad_norm"]


def test_without_clipping_there_is_no_norm_after_it() -> None:
    recipe = recipe_of("sgd", 0.1)
    _, metrics = STEP(recipe, recipe.init(0), BATCH)
    assert "clipped_grad_norm" not in metrics


def test_the_norm_is_formed_at_log_points_only_and_compiles_once() -> None:
    recipe = recipe_of("adam", 0.1, clip=ft.AdaptiveClip(0.01))

    def step(state: Any, norms: Any) -> Any:
        return ft.train_step(recipe, state, jax.tree.map(jnp.asarray, BATCH), norms=norms)

    compiled, traces = counted(step)
    state = recipe.init(0)
    for index in range(4):
        state, metrics = compiled(state, jnp.asarray(index % 2 == 1))
        told = float(metrics["clipped_grad_norm"].weight)
        assert told == index % 2
    assert len(traces) == 1


def roots(jaxpr: Any) -> list[int]:
    """The square roots in the branches of the one conditional: reject, emit, measure."""
    (branches,) = [e.params["branches"] for e in jaxpr.eqns if e.primitive.name == "cond"]
    return [str(branch).count(" = sqrt ") for branch in branches]


def test_other_steps_form_no_norm_for_the_metric() -> None:
    """Each norm has a square root, and SGD with this clipping has no other."""
    recipe = recipe_of("sgd", 0.1, clip=ft.ClipValue(0.01))
    plain = recipe_of("sgd", 0.1)
    counts = []
    for one in (recipe, plain):
        step = functools.partial(ft.train_step, one, norms=jnp.asarray(True))
        counts.append(roots(jax.make_jaxpr(step)(one.init(0), BATCH).jaxpr))
    assert counts == [[0, 0, 3], [0, 0, 2]]


def test_an_object_is_clipped_in_front() -> None:
    clip = [ft.ClipValue(0.02), ft.ClipZScore(warmup=2)]
    named, built = recipe_of("sgd", 0.5, clip=clip), recipe_of(ft.optim.sgd(0.5), clip=clip)
    foreign = recipe_of(optax.sgd(0.5), clip=clip)
    ends = []
    for recipe in (named, built, foreign):
        state, metrics = recipe.init(0), {}
        for _ in range(3):
            state, metrics = STEP(recipe, state, BATCH)
        ends.append((state.params, state.opt_state.clip_memory, metrics["clipped_grad_norm"]))
    for end in ends[1:]:
        for ours, theirs in zip(jax.tree.leaves(end), jax.tree.leaves(ends[0]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=FLOAT32_BAR, atol=1e-7)


def test_a_rejected_step_leaves_the_memory_as_it_was() -> None:
    recipe = recipe_of("adam", 0.1, clip=ft.ClipZScore(warmup=2), spikes=None)
    state = recipe.init(0)
    for _ in range(3):
        state, _ = STEP(recipe, state, BATCH)
    memory = state.opt_state.clip_memory["default"]["clip_z"]
    assert float(memory["seen"]) == 2.0 and float(memory["mean"]) > 0
    rejected, metrics = STEP(recipe, state, BAD)
    assert int(rejected.counters.skipped) == 1
    assert bits(rejected.opt_state) == bits(state.opt_state)
    assert bits(rejected.params) == bits(state.params)
    assert float(metrics["clipped_grad_norm"].weight) == 0
    accepted, _ = STEP(recipe, rejected, BATCH)
    assert bits(accepted.opt_state.clip_memory) != bits(state.opt_state.clip_memory)
    # And the run goes on as if the batch had not been there.
    straight, _ = STEP(recipe, state, BATCH)
    assert bits(straight.opt_state) == bits(accepted.opt_state)


def test_an_outlier_is_clipped_in_the_step() -> None:
    recipe = recipe_of("sgd", 1e-3, clip=ft.ClipZScore(warmup=4))
    state, metrics = recipe.init(0), {}
    for seed in range(6):
        rows = np.random.default_rng(seed).permutation(8)[:6]
        state, metrics = STEP(recipe, state, jax.tree.map(lambda a, r=rows: a[r], BATCH))
    usual = computed(metrics)["grad_norm"]
    huge = {**BATCH, "x": 30 * BATCH["x"]}
    _, metrics = STEP(recipe, state, huge)
    found = computed(metrics)
    assert found["grad_norm"] > 3 * usual
    assert found["clipped_grad_norm"] < 1.5 * usual


def test_the_gradient_of_frozen_parameters_is_no_part_of_any_norm() -> None:
    recipe = recipe_of("sgd", 1.0, clip_norm=0.05, freeze=["body"])
    state = recipe.init(0)
    grads = {p: g for p, g in gradient(recipe, state).items() if p[0] == "head"}
    after, metrics = STEP(recipe, state, BATCH)
    found = computed(metrics)
    assert found["grad_norm"] == pytest.approx(norm(*grads.values()), rel=1e-5)
    assert found["clipped_grad_norm"] == pytest.approx(0.05, rel=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, state.params["head"], after.params["head"])
    assert float(global_norm(moved)) == pytest.approx(0.05, rel=1e-4)
