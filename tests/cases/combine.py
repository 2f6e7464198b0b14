"""Rows of chains and of the transformations in them."""

from __future__ import annotations

from functools import partial

from tests.cases.base import FUNCTION, ONE_FACTOR, PREFIX_MASK, Case, halving, per_array
from tests.oracles.changed import jointly
from tests.oracles.sgd import sgd

CASES = (
    Case(
        "chain(clip_by_global_norm, sgd)",
        lambda o, lr: o.chain(o.clip_by_global_norm(1.0), o.sgd(lr)),
        rosenbrock=2e-3,
        oracle=partial(jointly, factor=lambda norm: min(1.0, 1.0 / norm)),
        lacks={"bitwise": ONE_FACTOR},
    ),
    Case(
        "chain(identity, trace, scale)",
        lambda o, lr: o.chain(o.identity(), o.trace(0.9, True), o.scale(-lr)),
        0.02,
        5e-4,
        oracle=per_array(sgd, momentum=0.9, nesterov=True),
    ),
    Case(
        "chain(add_decayed_weights, scale_by_schedule)",
        lambda o, lr: o.chain(
            o.add_decayed_weights(1e-4), o.scale_by_schedule(lambda count: -lr * halving(count))
        ),
        rosenbrock=2e-3,
        weight_decay=1e-4,
        decays_rest=True,
        needs_params=True,
        lacks={"prints": FUNCTION},
    ),
    Case(
        "named_chain(scale_by_adam, scale_by_learning_rate)",
        lambda o, lr: o.named_chain(
            ("direction", o.scale_by_adam(b2=0.99)), ("step", o.scale_by_learning_rate(lr))
        ),
        rosenbrock=1e-2,
    ),
    Case(
        "chain(masked(trace), sgd)",
        lambda o, lr: o.chain(o.masked(o.trace(0.5), PREFIX_MASK), o.sgd(lr)),
        rosenbrock=1e-3,
    ),
)
