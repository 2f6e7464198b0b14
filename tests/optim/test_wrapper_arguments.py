"""Bad arguments of wrappers are refused where it is made, with the place and the fix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError
from tests.runs import refused

SGD = optim.sgd(0.1)
ONES = jnp.ones(2)

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: optim.MultiSteps(SGD, 0), ArgumentError, "every_k_schedule=0"),
    (lambda: optim.MultiSteps(SGD, -2), ArgumentError, "every_k_schedule=-2"),
    (lambda: optim.MultiSteps(SGD, 2.0), ArgumentTypeError, "every_k_schedule=2.0"),
    (lambda: optim.MultiSteps(SGD, True), ArgumentTypeError, "every_k_schedule=True"),
    (lambda: optim.MultiSteps(0.1, 2), ArgumentTypeError, "is not a gradient transformation"),
    (lambda: optim.MultiSteps(SGD, 2, "yes"), ArgumentTypeError, "use_grad_mean='yes'"),
    (
        lambda: optim.MultiSteps(SGD, 2, should_skip_update_fn=True),
        ArgumentTypeError,
        "should_skip_update_fn=True",
    ),
    (
        lambda: optim.MultiSteps(SGD, 2, accumulator_dtype=int),
        ArgumentTypeError,
        "accumulator_dtype=",
    ),
    (lambda: optim.MultiSteps(SGD, every_k=2), ArgumentTypeError, "'every_k_schedule'"),
    (
        lambda: optim.skip_large_updates(ONES, 0, None, -1.0),
        ArgumentError,
        "max_squared_norm=-1.0",
    ),
    (
        lambda: optim.skip_large_updates(ONES, 0, None, math.nan),
        ArgumentError,
        "max_squared_norm=nan",
    ),
    (lambda: optim.apply_every(0), ArgumentError, "k=0"),
    (lambda: optim.apply_every(1.5), ArgumentTypeError, "k=1.5"),
    (lambda: optim.apply_if_finite(SGD, -1), ArgumentError, "max_consecutive_errors=-1"),
    (lambda: optim.apply_if_finite(SGD, 0.5), ArgumentTypeError, "max_consecutive_errors=0.5"),
    (lambda: optim.apply_if_finite(3, 1), ArgumentTypeError, "3 is not a gradient"),
    (
        lambda: optim.conditionally_mask(SGD, True),
        ArgumentTypeError,
        "should_transform_fn=True",
    ),
    (lambda: optim.conditionally_mask(3, len), ArgumentTypeError, "3 is not a gradient"),
    (
        lambda: optim.conditionally_transform(SGD, 3),
        ArgumentTypeError,
        "should_transform_fn=3",
    ),
    (
        lambda: optim.conditionally_transform(SGD, len, 1),
        ArgumentTypeError,
        "forward_extra_args=1",
    ),
    (lambda: optim.lookahead(SGD, 0, 0.5), ArgumentError, "sync_period=0"),
    (lambda: optim.lookahead(SGD, 1.5, 0.5), ArgumentTypeError, "sync_period=1.5"),
    (lambda: optim.lookahead(SGD, 5, 1.5), ArgumentError, "slow_step_size=1.5"),
    (lambda: optim.lookahead(SGD, 5, -0.5), ArgumentError, "slow_step_size=-0.5"),
    (lambda: optim.lookahead(SGD, 5, "half"), ArgumentTypeError, "slow_step_size='half'"),
    (lambda: optim.lookahead(SGD, 5, 0.5, 1), ArgumentTypeError, "reset_state=1"),
    (lambda: optim.lookahead(3, 5, 0.5), ArgumentTypeError, "3 is not a gradient"),
    (lambda: optim.flatten(3), ArgumentTypeError, "3 is not a gradient"),
    (lambda: optim.snapshot(3, len), ArgumentTypeError, "the name 3"),
    (lambda: optim.snapshot("norm", 3), ArgumentTypeError, "measure=3"),
    (lambda: optim.monitor([len]), ArgumentTypeError, "measures is a list"),
    (lambda: optim.monitor({3: len}), ArgumentTypeError, "the name 3"),
    (lambda: optim.monitor({"norm": 3}), ArgumentTypeError, "measure=3"),
    (lambda: optim.measure_with_ema(3, 0.9), ArgumentTypeError, "measure=3"),
    (lambda: optim.measure_with_ema(len, 2.0), ArgumentError, "decay=2.0"),
    (lambda: optim.measure_with_ema(len, 1.0), ArgumentError, "decay=1.0"),
    (lambda: optim.measure_with_ema(len, 0.9, 1), ArgumentTypeError, "debias=1"),
    (lambda: optim.incremental_update(ONES, ONES, 1.5), ArgumentError, "step_size=1.5"),
    (lambda: optim.incremental_update(ONES, ONES, "1"), ArgumentTypeError, "step_size='1'"),
    (lambda: optim.periodic_update(ONES, ONES, 0, 0), ArgumentError, "update_period=0"),
    (lambda: optim.periodic_update(ONES, ONES, 0.5, 1), ArgumentTypeError, "steps=0.5"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_a_wrong_argument_of_a_wrapper_raises(
    call: Callable[[], Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    refused(call, kind, text)


def test_tracers_are_accepted_for_every_number_of_a_wrapper() -> None:
    def update(k: Any, value: Any) -> Any:
        params = optim.LookaheadParams.init_synced(ONES)
        inner = optim.chain(
            optim.MultiSteps(optim.sgd(value), k),
            optim.apply_every(k),
            optim.apply_if_finite(optim.sgd(value), k),
        )
        tx = optim.lookahead(inner, k, value)
        updates, _ = tx.update(ONES, tx.init(params), params)
        kept, _ = optim.skip_large_updates(ONES, 0, None, value)
        slow = optim.incremental_update(ONES, updates.slow, value)
        return optim.periodic_update(slow, ONES, k, k), kept

    together, kept = jax.vmap(update)(jnp.array([1, 2]), jnp.array([0.25, 0.5]))
    assert together.shape == (2, 2) and kept.all()
