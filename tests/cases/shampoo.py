"""Rows of Shampoo. Blocks of 8: the recorded matrix is cut into four, the kernel into two."""

from __future__ import annotations

import optax

from tests.cases.base import FUNCTION, ONLY_W, PREFIX_MASK, Case, Lack, halving, per_array
from tests.oracles.shampoo import shampoo


def _optax_has_no_shampoo(case: Case) -> None:
    assert not any("shampoo" in name.lower() for name in (*dir(optax), *dir(optax.contrib)))


ONLY_HERE = Lack("optax has no Shampoo, only the matrix root", _optax_has_no_shampoo)

CASES = (
    Case(
        "shampoo",
        lambda o, lr: o.shampoo(lr, block_size=8),
        rosenbrock=1e-2,
        needs_params=True,
        oracle=per_array(shampoo, block_size=8),
        lacks={"in_optax": ONLY_HERE},
    ),
    Case(
        "scale_by_shampoo(sums, graft=rmsprop, merge_axes=False)",
        lambda o, lr: o.chain(
            o.scale_by_shampoo(
                8, b2=1.0, graft="rmsprop", precondition_every=3, merge_axes=False
            ),
            o.scale_by_learning_rate(lr),
        ),
        rosenbrock=0.1,
        oracle=per_array(shampoo, block_size=8, b2=1.0, graft="rmsprop", every=3, merge=False),
        lacks={"in_optax": ONLY_HERE},
    ),
    Case(
        "shampoo(schedule, graft=none, nesterov, weight_decay, mask)",
        lambda o, lr: o.shampoo(
            lambda count: lr * halving(count),
            8,
            b2=0.99,
            weight_decay=1e-3,
            mask=PREFIX_MASK,
            graft="none",
            nesterov=True,
            precondition_every=20,
            precondition_from=30,
        ),
        rosenbrock=1e-2,
        weight_decay=1e-3,
        needs_params=True,
        oracle=per_array(
            shampoo,
            decayed=ONLY_W,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-3,
            block_size=8,
            b2=0.99,
            graft="none",
            nesterov=True,
            every=20,
            start=30,
        ),
        lacks={"in_optax": ONLY_HERE, "prints": FUNCTION},
    ),
)
