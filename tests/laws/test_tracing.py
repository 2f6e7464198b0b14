"""Laws about jax's transformations: jit, vmap, recompilation, shared traces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.optim.adam import Adam
from flaxtrain.optim.sgd import Trace, TraceSlots
from flaxtrain.typing import Array
from tests import gradients
from tests.cases import CASES, Case
from tests.runs import at, counted, deviation, differing_leaves

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

FUSED = 1e-6
"""Fused arithmetic keeps products unrounded: a few float32 roundings (6e-8)."""

RATES = (1e-3, 1e-2, 0.3)


def recorded(steps: int, *, complex_leaf: bool = True) -> tuple[Any, Any]:
    return (
        gradients.cast(gradients.params(complex_leaf=complex_leaf), jnp.float32),
        gradients.cast(gradients.gradients(steps, complex_leaf=complex_leaf), jnp.float32),
    )


def small(case: Case) -> tuple[Any, Any]:
    params, grads = recorded(2)
    leaf = "wave" if case.has_complex else "bias"
    return ({"w": tree["w"], "rest": {leaf: tree["rest"][leaf]}} for tree in (params, grads))


@each_case
def test_jit_and_eager_agree_and_the_second_call_does_not_compile(case: Case) -> None:
    tx = case.ours()
    params, grads = small(case)
    update, traces = counted(tx.update)
    state = tx.init(params)
    for index in range(2):
        compiled = update(at(grads, index), state, params, **case.extra(at(grads, index)))
        eager = tx.update(at(grads, index), state, params, **case.extra(at(grads, index)))
        assert deviation(compiled, eager) <= case.rounding(float32=FUSED)
        state = compiled[1]
    assert len(traces) == 1


@each_case
def test_vmap_over_learning_rates_equals_a_loop(case: Case) -> None:
    params, grads = small(case)

    def two(learning_rate: Any) -> Any:
        tx = case.ours(learning_rate)
        first, state = tx.update(at(grads, 0), tx.init(params), params, **case.extra(grads))
        return first, tx.update(at(grads, 1), state, params, **case.extra(grads))[0]

    together = jax.vmap(two)(jnp.asarray(RATES, jnp.float32))
    for index, rate in enumerate(RATES):
        assert deviation(at(together, index), two(jnp.float32(rate))) <= case.rounding(
            float32=FUSED
        )
    assert differing_leaves(at(together, 0), at(together, 1))


@optim.rule
class Counting(Trace):
    """A trace that writes down every time its Python code runs."""

    log: Any = None

    def update(
        self, grad: Array, slots: TraceSlots, param: Array | None, scalars: None
    ) -> tuple[Array, TraceSlots]:
        LOG.append(grad.shape)
        return super().update(grad, slots, param, scalars)


LOG: list[tuple[int, ...]] = []


def test_leaves_of_equal_shape_share_one_trace_under_jit_and_none_in_eager_mode() -> None:
    tx = optim.per_leaf(Counting(0.625), state=optim.TraceState)
    shapes = [(3, 5)] * 12 + [(5,)] * 7 + [()]
    params = {f"p{i}": jnp.ones(shape) for i, shape in enumerate(shapes)}
    state = tx.init(params)

    LOG.clear()
    jax.jit(tx.update).lower(params, state)
    assert sorted(LOG) == [(), (3, 5), (5,)]

    LOG.clear()
    tx.update(params, state)
    assert len(LOG) == len(shapes)


def test_another_value_of_a_static_field_is_another_trace_and_an_equal_one_is_not() -> None:
    def lower(decay: Any) -> int:
        LOG.clear()
        tx = optim.per_leaf(Counting(decay), state=optim.TraceState)
        params = {"a": jnp.ones((2, 7))}
        jax.jit(tx.update).lower(params, tx.init(params))
        return len(LOG)

    assert [lower(0.25), lower(0.25), lower(0.5)] == [1, 0, 1]
    assert [lower(jnp.float32(0.25)), lower(jnp.float32(0.5))] == [1, 0]


def test_an_edited_array_hyperparameter_does_not_recompile_and_keeps_the_bits() -> None:
    """`DecayRate` carries 1 - b from float64: bit for bit the program with constants."""
    params, grads = recorded(20)

    @counted
    def program(rule: Adam, t: Array, grad: Any, slots: Any) -> Any:
        return optim.update_slots(rule, t, grad, slots)

    step, traces = program

    def updates(b1: Any, b2: Any) -> list[Any]:
        rule = Adam(b1, b2)
        slots, record = optim.init_slots(rule, params), []
        for index in range(20):
            grad = at(grads, index)
            update, slots = step(rule, jnp.int32(index + 1), grad, slots)
            record.append(update)
        return record

    constant = updates(0.9, 0.999)
    edited = updates(optim.DecayRate.of(0.9), optim.DecayRate.of(0.999))
    assert differing_leaves(edited, constant) == []
    before = len(traces)
    other = updates(optim.DecayRate.of(0.8), optim.DecayRate.of(0.99))
    assert len(traces) == before
    assert differing_leaves(other, constant)
    # The naive array: 1 - float32(0.999) is off by 1e-5.
    naive = updates(jnp.float32(0.9), jnp.float32(0.999))
    assert deviation(naive, constant) > 2e-6


def test_no_state_or_update_is_weakly_typed() -> None:
    for case in CASES:
        tx = case.ours()
        params, grads = recorded(2, complex_leaf=case.has_complex)
        carry = jax.eval_shape(lambda p, tx=tx: tx.init(p), params)
        after = jax.eval_shape(
            tx.update, at(grads, 0), carry, params, **case.extra(at(grads, 0))
        )[1]
        weak = [x.weak_type for x in jax.tree.leaves((carry, after))]
        assert not any(weak), case.name
