"""Optax is the judge: signatures, state trees and numbers are its own."""

from __future__ import annotations

import inspect
from typing import Any

import jax.numpy as jnp
import optax
import pytest

from flaxtrain import optim
from tests.cases import CASES, Case
from tests.runs import deviation, differing_leaves, moved, nodes, run

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


@each_case
def test_float32_under_jit_over_1000_updates(case: Case) -> None:
    if lack := case.lacks.get("in_optax"):
        lack.proof(case)
        return
    params, grads = case.recorded(1000, jnp.float32)
    ours, judge = (run(tx, params, grads, case.extra) for tx in (case.ours(), case.judge()))
    found = deviation(ours, judge)
    assert found <= FLOAT32_BAR or found <= 3 * sensitivity(case, judge)
    assert nodes(ours[1]) == nodes(judge[1]), (
        "classes, field names, shapes, dtypes of the state"
    )
    differing = differing_leaves(ours, judge)
    assert bool(differing) == ("bitwise" in case.lacks) or not differing, differing


def sensitivity(case: Case, judge: Any) -> float:
    """Returns how far optax gets from itself when gradients move by one last place."""
    params, grads = case.recorded(1000, jnp.float32)
    return deviation(run(case.judge(), params, moved(grads), case.extra), judge)


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
