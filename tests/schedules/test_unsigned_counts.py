"""Counts without a sign: a difference below zero must not become a huge number."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import schedules


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("polynomial_schedule", (1.0, 0.0, 2, 10, 5)),
        ("linear_schedule", (1.0, 0.0, 10, 5)),
        ("exponential_decay", (1.0, 10, 0.5, 5)),
        ("piecewise_constant_schedule", (1.0, {5: 0.1})),
    ],
)
def test_unsigned_counts_give_the_values_of_signed_ones(
    name: str, arguments: tuple[Any, ...]
) -> None:
    ours, theirs = (getattr(module, name)(*arguments) for module in (schedules, optax))
    counts = range(20)
    for dtype in (jnp.uint8, jnp.uint32):
        for count in counts:
            assert float(ours(dtype(count))) == float(ours(count))
    wanted = [float(theirs(jnp.int32(count))) for count in counts]
    np.testing.assert_allclose([float(ours(count)) for count in counts], wanted, rtol=1e-6)
    # Optax subtracts, and what is below 0 wraps.
    assert [float(theirs(jnp.uint32(count))) for count in counts] != wanted
