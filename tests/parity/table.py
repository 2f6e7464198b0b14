"""Prints how far every row is from optax: `python -m tests.parity.table`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.cases import CASES, Case
from tests.runs import at, deviation, differing_leaves, run, ulps, walk


def measured(case: Case) -> str:
    """Returns one row: float32 over 1,000 updates, eager and bfloat16 over 20."""
    params, grads = case.recorded(1000, jnp.float32)
    ours, judge = run(case.ours(), params, grads), run(case.judge(), params, grads)
    same = len(jax.tree.leaves(ours)) - len(differing_leaves(ours, judge))
    few = at(grads, slice(20))
    eager = deviation(*(walk(tx, params, few, jit=False) for tx in (case.ours(), case.judge())))
    params, few = case.recorded(20, jnp.bfloat16)
    low = ulps(*(walk(tx, params, few, jit=True) for tx in (case.ours(), case.judge())))
    return (
        f"| {case.name} | {deviation(ours, judge):.1e} | {same}/{len(jax.tree.leaves(ours))} "
        f"| {eager:.1e} | {low:g} |"
    )


if __name__ == "__main__":
    print(
        "| optimizer | float32, jit, 1,000 updates | leaves bit for bit equal | eager | bf16 |"
    )
    print("|---|---|---|---|---|")
    for case in CASES:
        print(measured(case), flush=True)
