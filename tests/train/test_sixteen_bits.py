"""Parameters of 16 bits in training: what the state keeps, what becomes of small updates."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import checkpoint, optim
from flaxtrain.precision import Kahan, Master, Precision, rounding_rule
from flaxtrain.train import TrainState, begin_average
from tests.runs import BITWISE_STACK, FLOAT32_BAR, deviation, differing_leaves

STEP = jax.jit(ft.train_step, static_argnums=0)
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
BATCH = {"x": X, "label": (X[:, 0] > 0).astype("int32")}
RULES = ("nearest", "master", "stochastic", "kahan")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(5, name="body")(x)))


@functools.cache
def recipe(
    update: str, spec: Any = None, policy: str = "p=bf16,c=bf16", whole: str | None = None
) -> Any:
    spec = ft.OptSpec("adam", 1e-2, nonfinite="skip") if spec is None else spec
    options = ft.StepOptions(
        precision=Precision(
            policy, update=update, overrides={} if whole is None else {whole: "p=f32"}
        )
    )
    return ft.make_recipe(Net(), spec, BATCH, options=options)


def trained(made: Any, steps: int = 4, state: Any = None) -> Any:
    state = made.init(0) if state is None else state
    for _ in range(steps):
        state, metrics = STEP(made, state, BATCH)
        assert np.isfinite(float(metrics["loss"].compute()))
    return state


def carried(state: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype.name
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.rounding_carry)
    }


@pytest.mark.parametrize("update", RULES)
def test_the_state_keeps_what_the_rule_needs_and_a_step_is_compiled_once(update: str) -> None:
    made = recipe(update)
    state = made.init(0)
    names = ["body/bias", "body/kernel", "head/bias", "head/kernel"]
    kept = {"master": "float32", "kahan": "bfloat16"}.get(update)
    assert carried(state) == ({} if kept is None else dict.fromkeys(names, kept))
    traces: list[int] = []

    def step(state: Any, batch: Any) -> Any:
        traces.append(1)
        return ft.train_step(made, state, batch)[0]

    # Traced, not compiled: what comes out goes in again.
    for _ in range(2):
        state = jax.eval_shape(step, state, BATCH)
    assert len(traces) == 1
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}
    # Slots and arithmetic are float32, whatever parameters are stored in.
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state.slots)} == {"float32"}


def test_with_master_weights_a_run_is_that_of_float32_parameters() -> None:
    spec = ft.OptSpec("adamw", 1e-2, weight_decay=0.1, clip_norm=0.5)
    short, full = recipe("master", spec), recipe("nearest", spec, "bf16")
    first, second = short.init(0), full.init(0)
    # From the first values on: they are not rounded before they are copied.
    assert not differing_leaves(first.rounding_carry, second.params)
    first, second = trained(short, 5, first), trained(full, 5, second)
    # Two programs: where bits agree, XLA has fused the same things.
    assert deviation(first.rounding_carry, second.params) < 10 * FLOAT32_BAR
    if BITWISE_STACK:
        assert not differing_leaves(first.rounding_carry, second.params)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), first.rounding_carry)
    assert not differing_leaves(first.params, rounded)


def test_objects_and_apply_gradients_work_on_master_weights_too() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    for tx in (optim.sgd(1e-3), optim.adam(1e-3)):
        state = TrainState.create(apply_fn=None, params=params, tx=tx, rounding=Master())
        for _ in range(4):
            state = state.apply_gradients(grads={"w": jnp.ones(3, jnp.bfloat16)})
        np.testing.assert_allclose(state.rounding_carry["w"], 1 - 4e-3, rtol=1e-5)
        assert state.params["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("update", RULES)
def test_small_updates_vanish_only_when_sums_are_rounded_to_nearest(update: str) -> None:
    params = {"w": jnp.ones(64, jnp.bfloat16)}
    tx, rule = optim.sgd(1e-3), rounding_rule(update)
    state = TrainState.create(apply_fn=None, params=params, tx=tx, rounding=rule)

    def step(state: Any, _: None) -> tuple[Any, None]:
        return state.apply_gradients(grads={"w": jnp.ones(64)}), None

    state = jax.jit(lambda state: jax.lax.scan(step, state, None, length=1000)[0])(state)
    mean = float(jnp.mean(state.params["w"].astype(jnp.float32)))
    # Kept are 8 bits of each value, and 1000 updates of 1e-3 have taken 1 to 0.
    assert (mean == 1.0) if update == "nearest" else abs(mean) < 0.02


def test_stochastic_rounding_is_the_same_in_every_run_and_differs_between_steps() -> None:
    made = recipe("stochastic")
    first, again = trained(made, 3), trained(made, 3)
    assert not differing_leaves(first, again)
    state = TrainState.create(
        apply_fn=None,
        params={"w": jnp.ones(64, jnp.bfloat16)},
        tx=optim.sgd(1e-3),
        rounding=rounding_rule("stochastic"),
    )
    grads = {"w": jnp.ones(64)}
    now = state.apply_gradients(grads=grads)
    later = state.replace(step=state.step + 1).apply_gradients(grads=grads)
    assert differing_leaves(now.params, later.params)


@pytest.mark.parametrize("update", RULES)
def test_parameters_put_in_by_hand_stay_with_a_carry_of_their_own(update: str) -> None:
    rule, new = rounding_rule(update), {"w": jnp.full(3, 7.0, jnp.bfloat16)}
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = TrainState.create(apply_fn=None, params=params, tx=optim.sgd(0.0), rounding=rule)
    state = state.replace(params=new, rounding_carry=rule.init(new, new))
    after = state.apply_gradients(grads={"w": jnp.ones(3)})
    np.testing.assert_array_equal(after.params["w"], new["w"])
    np.testing.assert_array_equal(after.exact_params["w"], new["w"])


@pytest.mark.parametrize("update", ["master", "kahan", "stochastic"])
def test_a_rejected_step_changes_no_bit_of_parameters_and_carry(update: str) -> None:
    made = recipe(update)
    state = trained(made, 2)
    after, _ = STEP(made, state, {**BATCH, "x": X * np.nan})
    assert int(after.counters.skipped) == 1
    kept = ("params", "rounding_carry", "opt_state", "step")
    for name in kept:
        assert not differing_leaves(getattr(after, name), getattr(state, name))


def test_frozen_parameters_have_no_carry_and_thawed_ones_a_fresh_one() -> None:
    update = "kahan"
    spec = ft.OptSpec("adam", 1e-2, freeze=ft.Freeze("body/**", until=2))
    made = recipe(update, spec)
    state = made.init(0)
    assert set(carried(state)) == {"head/bias", "head/kernel"}
    state = trained(made, 2, state)
    before = state.rounding_carry["head"]
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(before))
    thawed = made.at(2).enter(state)
    assert set(carried(thawed)) == {"body/bias", "body/kernel", "head/bias", "head/kernel"}
    assert not differing_leaves(thawed.rounding_carry["head"], before)
    fresh = rounding_rule(update).init(state.params["body"], state.params["body"])
    assert not differing_leaves(thawed.rounding_carry["body"], fresh)
    jax.eval_shape(lambda *args: ft.train_step(made.at(2), *args), thawed, BATCH)


def test_an_override_stores_some_parameters_in_full() -> None:
    state = recipe("kahan", whole="head").init(0)
    assert set(carried(state)) == {"body/bias", "body/kernel"}
    assert state.params["head"]["kernel"].dtype == jnp.float32


def test_the_carry_is_checkpointed_by_name(tmp_path: Path) -> None:
    made = recipe("kahan")
    state = trained(made, 3)
    path = checkpoint.save(tmp_path / "3", state)
    named = checkpoint.restore(path)
    assert set(named["rounding_carry"]["body"]) == {"bias", "kernel"}
    back = checkpoint.restore(path, like=jax.eval_shape(made.init), from_like=(), if_present=())
    assert not differing_leaves(back, state)
    assert not differing_leaves(trained(made, 2, back), trained(made, 2, state))


def test_averages_are_those_of_the_exact_weights_and_lookahead_sets_them_back() -> None:
    exact = {"w": jnp.full(4, 1.0 + 2.0**-12)}
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    rule = Master()

    def state(average: Any) -> TrainState:
        return TrainState.create(
            apply_fn=None,
            params=stored,
            tx=optim.sgd(2.0**-10),
            rounding=rule,
            rounding_carry=rule.init(exact, stored),
            ema=begin_average(average, exact, {}),
        )

    grads = {"w": jnp.ones(4)}
    ema = state(ft.Ema(0.5, warmup=False)).apply_gradients(grads=grads)
    expected = 1 + 2.0**-12 - 2.0**-11
    np.testing.assert_array_equal(ema.ema.params["w"], np.float32(expected))
    slow = state(ft.Lookahead(sync_period=1, slow_step_size=0.5)).apply_gradients(grads=grads)
    np.testing.assert_array_equal(slow.rounding_carry["w"], np.float32(expected))
    assert slow.params["w"].dtype == jnp.bfloat16 and isinstance(slow.rounding, Master)
    kahan = state(None).replace(rounding=Kahan(), rounding_carry={})
    assert carried(kahan.apply_gradients(grads=grads)) == {"w": "bfloat16"}
