"""The other modes against optax: eager, bfloat16, and a run that optax began."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.cases import CASES, Case
from tests.runs import FLOAT32_BAR, at, deviation, differing_leaves, nodes, ulps, walk

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_float32_without_jit(case: Case) -> None:
    if lack := case.lacks.get("in_optax"):
        lack.proof(case)
        return
    params, grads = case.recorded(3, jnp.float32)
    ours = walk(case.ours(), params, grads, jit=False, extra=case.extra)
    judge = walk(case.judge(), params, grads, jit=False, extra=case.extra)
    assert deviation(ours, judge) <= FLOAT32_BAR
    first, expected = case.ours().init(params), case.judge().init(params)
    assert nodes((first, ours[1])) == nodes((expected, judge[1]))
    assert differing_leaves(first, expected) == []


@each_case
def test_bfloat16_within_two_last_places_over_20_updates(case: Case) -> None:
    if lack := case.lacks.get("in_optax"):
        lack.proof(case)
        return
    params, grads = case.recorded(20, jnp.bfloat16)
    ours = walk(case.ours(), params, grads, jit=True, extra=case.extra)
    judge = walk(case.judge(), params, grads, jit=True, extra=case.extra)
    assert nodes((ours[1], ours[2])) == nodes((judge[1], judge[2]))
    # 2 last places: one factor instead of a division and a product (clipping); others agree.
    assert ulps(ours, judge) <= (2 if "bitwise" in case.lacks else 0)


@each_case
def test_a_run_begun_with_optax_continues_here(case: Case) -> None:
    if lack := case.lacks.get("in_optax"):
        lack.proof(case)
        return
    params, grads = case.recorded(2, jnp.float32)
    tx, judge, extra = case.ours(), case.judge(), case.extra(at(grads, 0))
    _, begun = judge.update(at(grads, 0), judge.init(params), params, **extra)
    structure = jax.tree.structure(jax.eval_shape(tx.init, params))
    state = jax.tree.unflatten(structure, jax.tree.leaves(begun))
    ours = tx.update(at(grads, 1), state, params, **extra)
    assert deviation(ours, judge.update(at(grads, 1), begun, params, **extra)) <= FLOAT32_BAR
