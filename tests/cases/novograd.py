"""Rows of NovoGrad."""

from __future__ import annotations

import jax.numpy as jnp

from tests.cases.base import FUNCTION, Case, Lack, halving, per_array
from tests.oracles.novograd import novograd
from tests.runs import BITWISE_STACK, FLOAT32_BAR, deviation, differing_leaves, run, walk


def _optax_differs_from_itself(case: Case) -> None:
    params, grads = case.recorded(20, jnp.float32)
    ours, called = (walk(tx, params, grads, jit=True) for tx in (case.ours(), case.judge()))
    if not BITWISE_STACK:
        assert deviation(ours, called) <= FLOAT32_BAR
        return
    assert differing_leaves(ours, called) == []
    assert differing_leaves(run(case.judge(), params, grads)[:2], called[:2])


SCANNED = Lack(
    "every bit is optax's where `update` is compiled alone; in a scan the compiler rounds the "
    "sum of three terms otherwise, and there optax is not bit for bit itself",
    _optax_differs_from_itself,
)

CASES = (
    Case("novograd", lambda o, lr: o.novograd(lr), 1e-3, 1e-4, oracle=per_array(novograd)),
    Case(
        "novograd(weight_decay)",
        lambda o, lr: o.novograd(lr, 0.95, 0.3, 1e-4, 1e-6, 1e-3),
        1e-3,
        1e-4,
        weight_decay=1e-3,
        decays_rest=True,
        needs_params=True,
        oracle=per_array(
            novograd,
            weight_decay=lambda step: 1e-3,
            b1=0.95,
            b2=0.3,
            eps=1e-4,
            eps_root=1e-6,
        ),
        lacks={"bitwise": SCANNED},
    ),
    Case(
        "scale_by_novograd(b1, b2), sgd(schedule)",
        lambda o, lr: o.chain(
            o.scale_by_novograd(0.95, 0.98), o.sgd(lambda count: lr * halving(count))
        ),
        1e-3,
        1e-3,
        oracle=per_array(
            novograd,
            learning_rate=lambda step: 1e-2 * halving(step),
            b1=0.95,
            b2=0.98,
            eps=1e-8,
        ),
        lacks={"prints": FUNCTION},
    ),
)
