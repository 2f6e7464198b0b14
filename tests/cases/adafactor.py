"""Rows of Adafactor and its parts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.cases.base import (
    FUNCTION,
    IMAGINARY,
    ONLY_W,
    PREFIX_MASK,
    PROMOTES,
    Case,
    Lack,
    halving,
    per_array,
)
from tests.oracles.adafactor import adafactor
from tests.oracles.changed import bounded_rms, descent, in_proportion


def _optax_s_decay_is_float32(case: Case) -> None:
    """The first decay that is no 0 or 1: 1 - 2^-0.8, from the second moment of 1 and then 0."""
    with jax.enable_x64(True):
        tx = optax.scale_by_factored_rms(factored=False, epsilon=0.0)
        one, state = jnp.ones(1), tx.init(jnp.ones(1))
        for grad in (one, 0 * one):
            _, state = tx.update(grad, state, one)
        gap = abs(float(state.v[0]) / (1 - 2**-0.8) - 1)
    assert 1e-9 < gap < 1e-6


SINGLE = Lack("optax forms the decay in float32 whatever the dtype", _optax_s_decay_is_float32)


def capped(count: Any, decay_rate: Any) -> Any:
    """A decay that stays below a bound, as in arXiv:2106.04560."""
    return jnp.minimum(1.0 - (count + 1.0) ** -0.8, decay_rate)


# `dtype_momentum` is float32 unless it is given: each average is rounded to 6e-8 of itself.
FLOAT32_MOMENTUM = 1e-7

CASES = (
    Case(
        "adafactor",
        lambda o, lr: o.adafactor(lr),
        rosenbrock=2e-3,
        needs_params=True,
        oracle=per_array(adafactor),
        lacks={"float64": SINGLE},
    ),
    Case(
        "adafactor(min_dim_size_to_factor)",
        lambda o, lr: o.adafactor(lr, 3, decay_rate=0.7, clipping_threshold=2.0),
        rosenbrock=2e-3,
        needs_params=True,
        oracle=per_array(adafactor, smallest=3, decay=lambda t: 1 - t**-0.7, threshold=2.0),
        lacks={"float64": SINGLE},
    ),
    Case(
        "adafactor(schedule, momentum, weight_decay_rate)",
        lambda o, lr: o.adafactor(
            lambda count: lr * halving(count),
            min_dim_size_to_factor=4,
            momentum=0.9,
            dtype_momentum=None,
            weight_decay_rate=1e-4,
            weight_decay_mask=PREFIX_MASK,
        ),
        rosenbrock=0.05,
        weight_decay=2e-4,  # is not multiplied by the learning rate, 0.5 in the law
        needs_params=True,
        oracle=per_array(
            adafactor,
            decayed=ONLY_W,
            smallest=4,
            momentum=0.9,
            learning_rate=lambda step: 1e-2 * halving(step),
            weight_decay=lambda step: 1e-4,
        ),
        lacks={"prints": FUNCTION, "float64": SINGLE},
    ),
    Case(
        "adafactor(factored=False, plain)",
        lambda o, lr: o.adafactor(
            lr,
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            momentum=0.5,
            factored=False,
        ),
        0.01,
        oracle=per_array(
            adafactor, smallest=None, threshold=None, relative=False, momentum=0.5
        ),
        oracle_bar=FLOAT32_MOMENTUM,
        lacks={"float64": SINGLE, "keeps_bfloat16": PROMOTES, "complex_parity": IMAGINARY},
    ),
    Case(
        "chain(scale_by_factored_rms, scale)",
        lambda o, lr: o.chain(
            o.scale_by_factored_rms(
                decay_rate=0.9, min_dim_size_to_factor=4, decay_rate_fn=capped
            ),
            o.scale(-lr),
        ),
        0.01,
        oracle=per_array(
            adafactor,
            smallest=4,
            decay=lambda t: min(1 - t**-0.8, 0.9),
            threshold=None,
            relative=False,
        ),
        lacks={"prints": FUNCTION},
    ),
    Case(
        "chain(clip_by_block_rms, scale_by_param_block_norm, sgd)",
        lambda o, lr: o.chain(
            o.clip_by_block_rms(0.5), o.scale_by_param_block_norm(0.5), o.sgd(lr)
        ),
        rosenbrock=2e-3,
        needs_params=True,
        oracle=per_array(descent, change=in_proportion(bounded_rms(0.5), 0.5)),
    ),
)
