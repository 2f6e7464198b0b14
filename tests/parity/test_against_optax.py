"""Optax is the judge: signatures, state trees and numbers are its own."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from flaxtrain import optim
from tests import gradients
from tests.cases import CASES, Case
from tests.runs import at, deviation, differing_leaves, nodes, run, ulps, walk

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

FLOAT32_BAR = 2e-6
"""About 30 roundings; most rows are bit for bit equal, see the capability `bitwise`."""

NAMES = (
    *("adam", "adamw", "sgd", "scale_by_adam", "trace", "scale", "scale_by_learning_rate"),
    *("scale_by_schedule", "add_decayed_weights", "clip_by_global_norm", "identity"),
    *("chain", "named_chain", "masked", "apply_updates"),
)

ADDITIONS = {
    "adam": {"state_dtype"},
    "adamw": {"state_dtype"},
    "scale_by_adam": {"state_dtype"},
    "sgd": {"state_dtype"},
    "trace": {"state_dtype"},
}


def recorded(case: Case, steps: int, dtype: Any) -> tuple[Any, Any]:
    has_complex = dtype != jnp.bfloat16 and "complex_parity" not in case.lacks
    return (
        gradients.cast(gradients.params(complex_leaf=has_complex), dtype),
        gradients.cast(gradients.gradients(steps, complex_leaf=has_complex), dtype),
    )


@each_case
def test_float32_under_jit_over_1000_updates(case: Case) -> None:
    params, grads = recorded(case, 1000, jnp.float32)
    ours, judge = run(case.ours(), params, grads), run(case.judge(), params, grads)
    assert deviation(ours, judge) <= FLOAT32_BAR
    assert nodes(ours[1]) == nodes(judge[1]), (
        "classes, field names, shapes, dtypes of the state"
    )
    differing = differing_leaves(ours, judge)
    assert bool(differing) == ("bitwise" in case.lacks) or not differing, differing


@each_case
def test_float32_without_jit(case: Case) -> None:
    params, grads = recorded(case, 3, jnp.float32)
    ours = walk(case.ours(), params, grads, jit=False)
    judge = walk(case.judge(), params, grads, jit=False)
    assert deviation(ours, judge) <= FLOAT32_BAR
    first, expected = case.ours().init(params), case.judge().init(params)
    assert nodes((first, ours[1])) == nodes((expected, judge[1]))
    assert differing_leaves(first, expected) == []


@each_case
def test_bfloat16_within_two_last_places_over_20_updates(case: Case) -> None:
    params, grads = recorded(case, 20, jnp.bfloat16)
    ours = walk(case.ours(), params, grads, jit=True)
    judge = walk(case.judge(), params, grads, jit=True)
    assert nodes((ours[1], ours[2])) == nodes((judge[1], judge[2]))
    # 2 last places: one factor instead of a division and a product (clipping); others agree.
    assert ulps(ours, judge) <= (2 if "bitwise" in case.lacks else 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_call_of_optax_binds_the_same_here(name: str) -> None:
    ours = dict(inspect.signature(getattr(optim, name)).parameters)
    judge = inspect.signature(getattr(optax, name)).parameters
    added = {key: ours.pop(key) for key in set(ours) - set(judge)}
    assert set(added) == ADDITIONS.get(name, set())
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in added.values())
    shape = [(p.name, p.kind, p.default) for p in ours.values()]
    assert shape == [(p.name, p.kind, p.default) for p in judge.values()]


@pytest.mark.parametrize(
    "state", ["EmptyState", "MaskedNode", "MaskedState", "ScaleByAdamState"]
)
def test_states_have_optax_s_names_and_fields(state: str) -> None:
    assert getattr(optim, state)._fields == getattr(optax, state)._fields
    assert getattr(optim, state).__name__ == state


@each_case
def test_a_run_begun_with_optax_continues_here(case: Case) -> None:
    params, grads = recorded(case, 2, jnp.float32)
    tx, judge = case.ours(), case.judge()
    _, begun = judge.update(at(grads, 0), judge.init(params), params)
    structure = jax.tree.structure(jax.eval_shape(tx.init, params))
    state = jax.tree.unflatten(structure, jax.tree.leaves(begun))
    ours = tx.update(at(grads, 1), state, params)
    assert deviation(ours, judge.update(at(grads, 1), begun, params)) <= FLOAT32_BAR
