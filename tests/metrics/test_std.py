from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxtrain.errors import LossError
from flaxtrain.metrics import Std


def test_it_is_numpys_population_deviation():
    values = np.random.default_rng(0).normal(size=(50, 3))
    # float32 sums of 150 numbers: a few units of 1.2e-7.
    assert float(Std.of(values).compute()) == pytest.approx(values.std(), rel=1e-6)


def test_weights_count_rows_and_hide_nan():
    values = np.array([[1.0, 2.0], [3.0, 6.0], [np.nan, np.inf]])
    weight = np.array([1.0, 3.0, 0.0])
    repeated = np.array([1, 2, 3, 3, 3, 6, 6, 6])
    # exact up to float32 rounding of sums of eight numbers
    assert float(Std.of(values, weight).compute()) == pytest.approx(repeated.std(), rel=1e-6)


def test_merging_batches_is_the_deviation_of_all():
    values = np.random.default_rng(1).normal(3.0, 0.5, size=300)
    total = Std.empty()
    for batch in np.split(values, [7, 50, 51, 200]):
        total = total.merge(Std.of(batch))
    # five merges, each rounding to 6e-8
    assert float(total.compute()) == pytest.approx(values.std(), rel=2e-6)
    assert float(total.mean) == pytest.approx(values.mean(), rel=1e-6)


def test_a_mean_that_is_large_against_the_deviation_keeps_its_digits():
    """The form E[x^2] - E[x]^2 gives 0 or NaN here: 1e8 has no room for 1e-2 in float32."""
    values = (1e4 + np.random.default_rng(2).normal(0, 0.1, size=1000)).astype(np.float32)
    naive = np.mean(values**2) - np.mean(values) ** 2
    assert abs(naive - np.var(values, dtype=np.float64)) > 0.5 * np.var(
        values, dtype=np.float64
    )
    total = Std.of(values[:300]).merge(Std.of(values[300:]))
    # the mean itself is rounded to 1e4 * 6e-8 = 6e-4, whose square is 4e-5 of the variance
    assert float(total.compute()) == pytest.approx(values.std(dtype=np.float64), rel=1e-4)


SETS = st.lists(
    st.lists(st.integers(-8, 8).map(float), max_size=5).map(lambda x: np.array(x, np.float32)),
    min_size=3,
    max_size=3,
)


@settings(deadline=None, max_examples=30)
@given(SETS)
def test_it_is_a_commutative_monoid(sets):
    a, b, c = map(Std.of, sets)
    # float32 rounding of small integers' means and squares
    close = {"rtol": 1e-5, "atol": 1e-5}
    for left, right in [
        (a.merge(b), b.merge(a)),
        (a.merge(b).merge(c), a.merge(b.merge(c))),
        (a.merge(Std.empty()), a),
        (Std.empty().merge(a), a),
    ]:
        for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
            np.testing.assert_allclose(x, y, **close)


def test_the_value_of_nothing_is_nan_and_of_one_is_zero():
    assert np.isnan(Std.empty().compute()) and np.isnan(
        Std.of(np.ones(2), np.zeros(2)).compute()
    )
    assert float(Std.of(5.0).compute()) == 0.0


def test_it_works_inside_scan_and_jit():
    batches = np.random.default_rng(3).normal(size=(4, 10)).astype(np.float32)

    @jax.jit
    def run(batches):
        return jax.lax.scan(lambda s, b: (s.merge(Std.of(b)), None), Std.empty(), batches)[0]

    # float32 rounding over four merges
    assert float(run(batches).compute()) == pytest.approx(batches.std(), rel=2e-6)


def test_float64_values_are_summed_in_float64():
    with jax.enable_x64(True):
        total = Std.of(np.array([1.0, 2.0, 4.0])).merge(Std.of(np.array([7.0])))
        # float64 rounding
        assert float(total.compute()) == pytest.approx(np.std([1, 2, 4, 7]), rel=1e-14)


def test_bfloat16_values_are_summed_in_float32():
    assert Std.of(jnp.ones(3, jnp.bfloat16)).m2.dtype == jnp.float32


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(LossError, match=r"weight of shape \(2,\)"):
        Std.of(np.ones(3), np.ones(2))
