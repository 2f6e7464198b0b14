"""Optax is the judge: state trees and numbers are its own (names: `tests/compat`)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from tests.cases import CASES, Case
from tests.runs import (
    BITWISE_STACK,
    FLOAT32_BAR,
    deviation,
    differing_leaves,
    moved,
    nodes,
    run,
)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


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
    if not BITWISE_STACK:
        return
    differing = differing_leaves(ours, judge)
    assert bool(differing) == ("bitwise" in case.lacks), differing


def sensitivity(case: Case, judge: Any) -> float:
    """Returns how far optax gets from itself when gradients move by one last place."""
    params, grads = case.recorded(1000, jnp.float32)
    return deviation(run(case.judge(), params, moved(grads), case.extra), judge)
