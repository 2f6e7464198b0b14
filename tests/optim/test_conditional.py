"""conditionally_transform, conditionally_mask and apply_if_finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError
from tests.runs import differing_leaves, layout

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
NAMES = ("conditionally_transform", "conditionally_mask", "apply_if_finite")


def every_second(step: Any, **extra_args: Any) -> Any:
    return step % 2 == 1


def play(tx: Any, values: list[float], jit: bool = True) -> tuple[list[float], list[Any]]:
    update, state = jax.jit(tx.update) if jit else tx.update, tx.init(PARAMS)
    record, states = [], []
    for value in values:
        grads = {"w": jnp.full(2, value), "b": jnp.array(value)}
        updates, state = update(grads, state, PARAMS)
        record.append(float(updates["w"][0]))
        states.append(state)
    return record, states


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", NAMES[:2])
def test_steps_that_leave_it_out_keep_the_state(name: str, jit: bool) -> None:
    tx = getattr(optim, name)(optim.trace(0.5), every_second)
    record, states = play(tx, [1.0] * 4, jit)
    left_out = 0.0 if name == "conditionally_mask" else 1.0
    assert record == [left_out, 1.0, left_out, 1.5]
    assert [int(state.step) for state in states] == [1, 2, 3, 4]
    kept = [state.inner_state for state in states]
    assert differing_leaves(kept[1], kept[2]) == [] != differing_leaves(kept[2], kept[3])


@pytest.mark.parametrize("name", NAMES[:2])
def test_the_part_left_out_is_not_computed(name: str) -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    calls: list[int] = []
    inner = optim.GradientTransformation(lambda params: (), update)
    for jit in (True, False):
        play(getattr(optim, name)(inner, every_second), [1.0] * 4, jit)
    jax.effects_barrier()
    assert len(calls) == 4


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_part_that_widens_updates_gives_one_dtype_at_all_steps(name: str) -> None:
    low = jnp.ones(2, jnp.bfloat16)

    def first(lib: Any) -> Any:
        tx = getattr(lib, name)(lib.scale_by_adam(mu_dtype=jnp.float32), every_second)
        return jax.jit(tx.update)(low, tx.init(low))[0]

    with pytest.raises(TypeError):
        first(optax)
    assert first(optim).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES[:2])
def test_extra_arguments_reach_the_condition_if_asked_for(name: str) -> None:
    def small(step: Any, *, value: Any, **_: Any) -> Any:
        return value < 1.0

    tx = getattr(optim, name)(optim.scale(3.0), small, forward_extra_args=True)
    update = jax.jit(tx.update)
    assert update(1.0, tx.init(0.0), value=0.5)[0] == 3.0
    assert update(1.0, tx.init(0.0), value=2.0)[0] != 3.0
    with pytest.raises(TypeError):
        getattr(optim, name)(optim.scale(3.0), small).update(1.0, tx.init(0.0), value=0.5)


def test_a_condition_may_be_a_number_and_must_be_a_scalar() -> None:
    tx = optim.conditionally_mask(optim.scale(3.0), lambda step: step)
    assert play(tx, [1.0, 1.0])[0] == [0.0, 3.0]
    vector = optim.conditionally_mask(optim.scale(3.0), lambda step: jnp.zeros(2, bool))
    with pytest.raises(ArgumentError, match="should_transform_fn returned shape"):
        vector.update(1.0, vector.init(0.0))


NAN = float("nan")


@pytest.mark.parametrize("jit", [True, False])
def test_after_so_many_errors_in_a_row_one_is_applied_and_the_count_starts_again(
    jit: bool,
) -> None:
    tx = optim.apply_if_finite(optim.sgd(1.0), 2)
    record, states = play(tx, [1.0, NAN, NAN, NAN, NAN, 1.0, NAN], jit)
    np.testing.assert_array_equal(record, [-1.0, 0.0, 0.0, NAN, 0.0, -1.0, 0.0])
    assert [int(state.notfinite_count) for state in states] == [0, 1, 2, 0, 1, 0, 1]
    assert [int(state.total_notfinite) for state in states] == [0, 1, 2, 3, 4, 4, 5]
    finite = [True, False, False, False, False, True, False]
    assert [bool(state.last_finite) for state in states] == finite
    judged, judge = play(optax.apply_if_finite(optax.sgd(1.0), 2), [NAN] * 4)
    assert np.isnan(judged[3]) and judge[3].notfinite_count == 4, (
        "optax applies every later one"
    )


def test_up_to_the_limit_every_bit_is_optax_s() -> None:
    values = [1.0, NAN, float("inf"), 2.0, NAN, 3.0]
    ours, judge = (
        play(lib.apply_if_finite(lib.adam(0.1), 2), values) for lib in (optim, optax)
    )
    assert ours[0] == judge[0] and differing_leaves(ours[1], judge[1]) == []


def test_a_limit_of_zero_applies_everything_and_integers_are_finite() -> None:
    assert np.isnan(play(optim.apply_if_finite(optim.sgd(1.0), 0), [NAN])[0]).all()
    tx = optim.apply_if_finite(optim.identity(), 1)
    assert tx.update({"n": jnp.array(3)}, tx.init({}))[0] == {"n": 3}


def test_a_function_is_a_condition() -> None:
    assert isinstance(every_second, optim.ConditionFn)


def test_any_pair_can_be_inside() -> None:
    states = [
        optim.apply_if_finite(inner, 2).init(PARAMS)
        for inner in (optim.adam(0.1), optax.adam(0.1), optax.adam(0.1)._replace())
    ]
    assert layout(states[0]) == layout(states[1]) == layout(states[2])
