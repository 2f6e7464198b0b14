"""Moving averages, and decays that are arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain import optim
from flaxtrain.optim.moments import (
    bias_correction,
    complement,
    debiased,
    moving_average,
    squared_magnitude,
    value,
)


def test_an_average_of_a_constant_is_that_constant_after_correction() -> None:
    average = jnp.zeros(2)
    for t in range(1, 6):
        average = moving_average(0.75, jnp.array([2.0, -1.0]), average)
        corrected = debiased(average, bias_correction(0.75, jnp.int32(t)))
        # Powers of 3/4 have few bits: two roundings are left.
        np.testing.assert_allclose(corrected, [2.0, -1.0], rtol=3e-7)


def test_a_decay_rate_keeps_the_complement_exact() -> None:
    rate = optim.DecayRate.of(0.999)
    assert complement(rate) == np.float32(1 - 0.999)
    assert abs(complement(jnp.float32(0.999)) / 0.001 - 1) > 1e-6
    assert value(rate) == np.float32(0.999) and complement(0.5) == 0.5


def test_the_correction_is_the_same_in_eager_mode_and_under_jit() -> None:
    for t in range(1, 20):
        eager = bias_correction(0.999, jnp.int32(t))
        # One unit in the last place of 0.999^t is 6e-5 of the first correction.
        compiled = jax.jit(bias_correction, static_argnums=0)(0.999, jnp.int32(t))
        np.testing.assert_allclose(eager, compiled, rtol=1e-6)


def test_corrections_of_low_precision_averages_are_rounded_last() -> None:
    average = jnp.ones(1, jnp.bfloat16)
    correction = bias_correction(0.999, jnp.int32(1))
    assert correction.dtype == jnp.float32
    assert debiased(average, correction).dtype == jnp.bfloat16


def test_squares_of_complex_numbers_are_real() -> None:
    squares = squared_magnitude(jnp.array([3 + 4j, 1j]))
    np.testing.assert_array_equal(squares, np.array([25.0, 1.0], np.float32))
