"""MultiSteps, the functions that skip micro batches, and apply_every."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import flaxtrain as ft
from flaxtrain import optim
from flaxtrain.errors import ArgumentError
from tests.cases.accumulate import recorded
from tests.runs import at, deviation, differing_leaves, layout, run, walk

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def gradient(value: float) -> Any:
    return jax.tree.map(lambda p: jnp.full_like(p, value), PARAMS)


def play(tx: Any, values: list[float], params: Any = PARAMS) -> tuple[list[Any], Any]:
    state, record = tx.init(params), []
    update = jax.jit(tx.update)
    for value in values:
        updates, state = update(gradient(value), state, params)
        record.append(updates)
    return record, state


@pytest.mark.parametrize("make", [lambda o: o.adamw(1e-2), lambda o: o.sgd(0.1, 0.9)])
def test_every_bit_is_that_of_optax_s_optimizer_on_the_mean_gradients(make: Any) -> None:
    params, grads, means = recorded(200)
    expected = walk(make(optax), params, means, jit=True)[:2]
    params, state, _ = walk(optim.MultiSteps(make(optim), 4), params, grads, jit=True)
    assert differing_leaves((params, state.inner_opt_state), expected) == []


@pytest.mark.parametrize("mean", [True, False])
def test_micro_batches_give_the_step_of_the_whole_batch(mean: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(32, 3)), jnp.float32), jnp.asarray(rng.normal(size=32))
    loss = jax.grad(lambda w, x, y: jnp.mean((x @ w - y) ** 2))
    w = jnp.ones(3)
    tx = optim.MultiSteps(optim.adam(0.1), 4, use_grad_mean=mean)
    state = tx.init(w)
    for part in range(4):
        rows = slice(8 * part, 8 * part + 8)
        updates, state = tx.update(loss(w, x[rows], y[rows]), state, w)
    whole = loss(w, x, y) * (1 if mean else 4)
    expected, _ = optim.adam(0.1).update(whole, optim.adam(0.1).init(w), w)
    # Four means of 8 against one of 32: a few float32 roundings.
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_updates_are_zero_in_between_and_the_inner_count_advances_once() -> None:
    tx = optim.MultiSteps(optim.adam(0.1), 3)
    record, state = play(tx, [1.0] * 7)
    moves = [bool(updates["b"] != 0) for updates in record]
    assert moves == [False, False, True, False, False, True, False]
    assert state.gradient_step == state.inner_opt_state[0].count == 2 and state.mini_step == 1
    assert tx.has_updated(tx.init(PARAMS)) == tx.has_updated(state) == False  # noqa: E712


def test_a_skipped_micro_batch_keeps_the_answer_of_has_updated() -> None:
    for lib in (optim, optax):
        tx = lib.MultiSteps(lib.sgd(1.0), 2, should_skip_update_fn=lib.skip_not_finite)
        _, stepped = play(tx, [1.0, 1.0])
        _, skipped = play(tx, [1.0, 1.0, float("nan")])
        assert tx.has_updated(stepped) and tx.has_updated(skipped)
        assert skipped.gradient_step == stepped.gradient_step == 1


def test_nan_does_not_show_before_the_step_and_is_gone_after_it() -> None:
    values = [float("nan"), 1.0, 1.0, 1.0]
    judge, _ = play(optax.MultiSteps(optax.sgd(1.0), 2), values)
    assert jnp.isnan(judge[0]["w"]).all() and jnp.isnan(judge[3]["w"]).all(), "optax leaks it"
    ours, state = play(optim.MultiSteps(optim.sgd(1.0), 2), values)
    assert [float(updates["w"][0]) for updates in (ours[0], *ours[2:])] == [0.0, 0.0, -1.0]
    assert jnp.isnan(ours[1]["w"]).all() and jnp.isfinite(state.acc_grads["w"]).all()


def test_the_optimizer_inside_runs_only_when_it_takes_a_step() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    calls: list[int] = []
    spy = optim.GradientTransformation(lambda params: (), update)
    play(optim.MultiSteps(spy, 4), [1.0] * 8)
    jax.effects_barrier()
    assert len(calls) == 2
    for value in range(8):
        optim.MultiSteps(spy, 4).update(gradient(value), optim.MultiSteps(spy, 4).init(PARAMS))
    jax.effects_barrier()
    assert len(calls) == 2, "in eager mode too"


def test_k_may_follow_a_schedule_of_the_steps_taken() -> None:
    def growing(step: Any) -> Any:
        return jnp.where(step < 2, 1, 3)

    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    ours, state = play(optim.MultiSteps(optim.sgd(1.0), growing), values)
    judge, _ = play(optax.MultiSteps(optax.sgd(1.0), growing), values)
    assert [float(u["b"]) for u in ours] == [-1.0, -2.0, 0.0, 0.0, -4.0, 0.0]
    assert deviation(ours, judge) == 0 and state.gradient_step == 3


def test_a_schedule_of_floats_or_below_one_keeps_counting_in_integers() -> None:
    _, state = play(optim.MultiSteps(optim.sgd(1.0), lambda step: 2.0), [1.0] * 3)
    assert state.mini_step.dtype == jnp.int32 and state.gradient_step == 1
    record, _ = play(optim.MultiSteps(optim.sgd(1.0), lambda step: 0), [1.0] * 2)
    assert [float(updates["b"]) for updates in record] == [-1.0, -1.0]


def test_a_skipped_micro_batch_is_as_if_it_had_not_been() -> None:
    nan = float("nan")
    arguments = {"should_skip_update_fn": optim.skip_not_finite}
    ours, state = play(optim.MultiSteps(optim.adam(0.1), 2, **arguments), [1.0, nan, 3.0, nan])
    plain, expected = play(optim.MultiSteps(optim.adam(0.1), 2), [1.0, 3.0])
    assert differing_leaves((ours[0], ours[2]), (plain[0], plain[1])) == []
    assert differing_leaves(state[:4], expected[:4]) == []
    assert state.skip_state["should_skip"] and state.skip_state["num_not_finite"] == 3
    assert float(ours[1]["b"]) == float(ours[3]["b"]) == 0.0


def test_skip_functions_agree_with_optax() -> None:
    for fn in ("skip_not_finite", "skip_large_updates"):
        arguments = {"max_squared_norm": 20.0} if fn == "skip_large_updates" else {}
        ours, judge = (
            functools.partial(getattr(lib, fn), **arguments) for lib in (optim, optax)
        )
        for value in (1.0, 3.0, jnp.nan, jnp.inf):
            tree = gradient(value)
            assert differing_leaves(ours(tree, 0, None), judge(tree, 0, None)) == []
    verdict, _ = optim.skip_large_updates(jnp.array([3.0j]), 0, None, 8.0)
    assert verdict, "a complex entry counts by its magnitude"
    assert not optim.skip_large_updates(jnp.ones(1), 0, None, jnp.inf)[0]
    assert optim.skip_not_finite({}, 0, None)[1]["num_not_finite"].dtype == jnp.int32


def test_the_accumulator_has_its_own_dtype_and_complex_ones_stay_complex() -> None:
    low = {"w": jnp.ones(2, jnp.bfloat16)}
    assert optim.MultiSteps(optim.sgd(1.0), 2).init(low).acc_grads["w"].dtype == jnp.float32
    for dtype, expected in (("bfloat16", jnp.bfloat16), (None, jnp.bfloat16)):
        tx = optim.MultiSteps(optim.sgd(1.0), 2, accumulator_dtype=dtype)
        state = tx.init(low)
        for _ in range(2):
            assert state.acc_grads["w"].dtype == expected
            updates, state = tx.update(low, state, low)
            assert updates["w"].dtype == jnp.bfloat16
    wave = jnp.array([1.0 + 2.0j])
    tx = optim.MultiSteps(optim.sgd(1.0), 2)
    state = tx.init(wave)
    for _ in range(2):
        updates, state = tx.update(wave, state, wave)
    assert updates == -wave


def test_a_missing_gradient_leaves_its_sum_as_it_is() -> None:
    tx = optim.MultiSteps(optim.sgd(1.0), 2)
    state = tx.init(PARAMS)
    _, state = tx.update({"w": PARAMS["w"], "b": None}, state)
    updates, _ = tx.update({"w": PARAMS["w"], "b": None}, state)
    assert updates["b"] is None and updates["w"][0] == -1.0


def test_it_is_a_transformation_that_prints_and_compares() -> None:
    tx = optim.MultiSteps(optim.sgd(0.1), 4, accumulator_dtype=jnp.bfloat16)
    assert isinstance(tx, optim.GradientTransformation) and tx.inner_opt == optim.sgd(0.1)
    text = "MultiSteps(opt=sgd(learning_rate=0.1), every_k_schedule=4, "
    assert repr(tx) == text + "accumulator_dtype='bfloat16')"
    assert eval(repr(tx), dict(vars(optim))) == tx != optim.MultiSteps(optim.sgd(0.1), 4)
    assert tx.gradient_transformation() == tx
    assert hash(tx) == hash(tx.gradient_transformation())


def test_it_works_wherever_a_transformation_does() -> None:
    def final(tx: Any) -> Any:
        state = TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
        step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
        for value in (1.0, 3.0, 5.0):
            state = step(state, gradient(value))
        return state.params

    tx = optim.MultiSteps(optim.sgd(0.25), 2)
    expected = jax.tree.map(lambda p: p - 0.5, PARAMS)
    for wrapped in (tx, optim.chain(tx), optax.chain(optim.identity(), tx)):
        assert deviation(final(wrapped), expected) == 0
    assert deviation(final(optax.MultiSteps(optim.sgd(0.25), 2)), expected) == 0
    assert ft.OptSpec(tx).optimizer == tx


def test_its_state_can_be_donated() -> None:
    tx = optim.MultiSteps(optim.adam(0.1), 2, should_skip_update_fn=optim.skip_not_finite)
    update, state = jax.jit(tx.update, donate_argnums=1), tx.init(PARAMS)
    for _ in range(2):
        _, state = update(gradient(1.0), state)
    assert state.gradient_step == 1


def test_extra_arguments_reach_the_optimizer_inside() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optim.GradientTransformation(lambda params: (), update)
    tx = optim.MultiSteps(inner, 1, should_skip_update_fn=optim.skip_not_finite)
    updates, _ = jax.jit(tx.update)(gradient(2.0), tx.init(PARAMS), PARAMS, value=3.0)
    assert updates["b"] == 6.0


def test_a_verdict_that_is_no_bool_is_refused() -> None:
    tx = optim.MultiSteps(
        optim.sgd(1.0), 2, should_skip_update_fn=lambda *_: (jnp.zeros(2, bool), ())
    )
    with pytest.raises(ArgumentError, match="should_skip_update_fn returned shape"):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize("k", [1, 3])
def test_apply_every_is_optax_s_for_finite_updates(k: int) -> None:
    params, grads, _ = recorded(40)
    ours, judge = (
        run(lib.chain(lib.adam(1e-2), lib.apply_every(k)), params, grads)
        for lib in (optim, optax)
    )
    # One rounding: updates that are kept apart are added to the parameters unfused. Zeros that
    # optax makes of negative updates are negative.
    assert deviation(ours, judge) <= 3e-7 and layout(ours[1][1]) == layout(judge[1][1])


def test_apply_every_forgets_nan_with_the_period() -> None:
    def sums(lib: Any) -> list[float]:
        tx = lib.apply_every(2)
        state, record = tx.init(jnp.zeros(2)), []
        for value in (jnp.nan, 1.0, 1.0, 3.0):
            updates, state = tx.update(jnp.full(2, value), state)
            record.append(float(updates[0]))
        return record

    assert np.isnan(sums(optax)).all(), "optax never recovers"
    np.testing.assert_array_equal(sums(optim), [0.0, np.nan, 0.0, 4.0])


def test_apply_every_keeps_low_precision_and_none() -> None:
    tx = optim.apply_every(2)
    params = {"w": jnp.ones(2, jnp.bfloat16), "none": None}
    state = tx.init(params)
    updates, after = tx.update(params, state)
    assert layout((updates, after)) == layout((params, state)) and updates["none"] is None
    assert at(updates["w"], 0) == 0
