"""Lookahead: two sets of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ParameterError
from tests import gradients
from tests.runs import AS_IT_COMES, at, counted, deviation, differing_leaves, layout


def recorded(steps: int) -> tuple[Any, Any]:
    return (
        gradients.cast(gradients.params(), jnp.float32),
        gradients.cast(gradients.gradients(steps), jnp.float32),
    )


def play(lib: Any, steps: int, reset_state: bool = False) -> Any:
    start, grads = recorded(steps)
    params = lib.LookaheadParams.init_synced(start)
    tx = lib.lookahead(lib.adam(1e-2), 5, 0.5, reset_state)
    update = jax.jit(tx.update, compiler_options=AS_IT_COMES)
    state = tx.init(params)
    for index in range(steps):
        updates, state = update(at(grads, index), state, params)
        params = lib.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("reset_state", [True, False])
def test_two_sets_of_parameters_go_where_optax_s_do(reset_state: bool) -> None:
    ours, judge = (play(lib, 53, reset_state) for lib in (optim, optax))
    assert layout(ours) == layout(judge)
    # One rounding: the compiler may or may not fuse the product with the difference.
    assert deviation(ours, judge) <= 2e-7


def test_the_two_sets_of_parameters_share_no_buffer_and_can_be_donated() -> None:
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(params.fast, state, params)
        return optim.apply_updates(params, updates), state

    tx = optim.lookahead(optim.sgd(0.5), 2, 0.5)
    params = optim.LookaheadParams.init_synced({"w": jnp.ones(2), "scale": jnp.float32(1.0)})
    params, _ = jax.jit(step, donate_argnums=0)(params, tx.init(params))
    assert params.fast["w"][0] == 0.5 and params.slow["w"][0] == 1.0
    twice = jax.jit(optim.LookaheadParams.init_synced)({"w": jnp.ones(2)})
    jax.jit(step, donate_argnums=0)(twice, tx.init(twice))


def test_it_follows_the_paper_s_two_loops() -> None:
    x, g = np.array([1.0, -2.0]), np.random.default_rng(0).normal(size=(12, 2))
    tx = optim.lookahead(optim.sgd(0.1, 0.9), sync_period=4, slow_step_size=0.25)
    with jax.enable_x64(True):
        params = optim.LookaheadParams.init_synced(jnp.asarray(x))
        state = tx.init(params)
        for gradient in g:
            updates, state = tx.update(jnp.asarray(gradient), state, params)
            params = optim.apply_updates(params, updates)
    slow, trace = x, np.zeros(2)
    for outer in range(3):
        fast = slow
        for gradient in g[4 * outer : 4 * outer + 4]:
            trace = gradient + 0.9 * trace
            fast = fast - 0.1 * trace
        slow = slow + 0.25 * (fast - slow)
    np.testing.assert_allclose(params.slow, slow, rtol=1e-14)
    np.testing.assert_allclose(params.fast, slow, rtol=1e-14)


def test_nan_in_a_fast_step_leaves_the_slow_parameters() -> None:
    def slow(lib: Any) -> Any:
        params = lib.LookaheadParams.init_synced(jnp.ones(2))
        tx = lib.lookahead(lib.sgd(0.1), 3, 0.5)
        updates, _ = tx.update(jnp.full(2, jnp.nan), tx.init(params), params)
        return updates.slow

    assert jnp.isnan(slow(optax)).all() and jnp.all(slow(optim) == 0.0)


def test_a_reset_forgets_nan_of_the_fast_state() -> None:
    tx = optim.lookahead(optim.trace(0.9), 1, 0.0, reset_state=True)
    params = optim.LookaheadParams.init_synced(jnp.ones(2))
    _, state = tx.update(jnp.full(2, jnp.nan), tx.init(params), params)
    assert jnp.all(state.fast_state.trace == 0.0)


def test_extra_arguments_reach_the_fast_optimizer() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return updates * value, state

    fast = optim.GradientTransformation(lambda params: (), update)
    params = optim.LookaheadParams.init_synced(jnp.ones(2))
    tx = optim.lookahead(fast, 2, 0.5)
    updates, _ = tx.update(jnp.ones(2), tx.init(params), params, value=3.0)
    assert jnp.all(updates.fast == 3.0)


def test_the_updates_are_a_pair_like_the_parameters() -> None:
    params = optax.LookaheadParams.init_synced({"w": jnp.ones(2), "none": None})
    tx = optim.lookahead(optim.sgd(0.1), 1, 1.0)
    updates, _ = tx.update(params.fast, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert optax.apply_updates(params, updates).slow["w"][0] == jnp.float32(0.9)


def test_init_takes_the_fast_parameters_alone_and_update_needs_the_pair() -> None:
    tx = optim.lookahead(optim.adam(0.1), 5, 0.5)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    pair = optim.LookaheadParams.init_synced(params)
    assert differing_leaves(state, tx.init(pair)) == []
    with pytest.raises(ParameterError, match="a pair of fast and slow parameters"):
        tx.update(params, state, params)
    with pytest.raises(ParameterError, match="needs the parameters, and got none"):
        tx.update(params, state)


def test_low_precision_is_kept_and_the_second_call_does_not_compile() -> None:
    low = jnp.ones(2, jnp.bfloat16)
    params = optim.LookaheadParams.init_synced(low)
    tx = optim.lookahead(optim.adam(0.1), 2, 0.5, reset_state=True)
    (update, traces), state = counted(tx.update), tx.init(params)
    for _ in range(3):
        updates, after = update(low, state, params)
        assert layout((updates, after)) == layout((params, state))
        state = after
    assert len(traces) == 1


def test_it_prints() -> None:
    tx = optim.lookahead(optim.sgd(0.1), 5, 0.5)
    assert eval(repr(tx), dict(vars(optim))) == tx
