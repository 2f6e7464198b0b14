"""Updates of 16-bit parameters: what is kept, what is rounded, and what it adds up to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import UnknownNameError
from flaxtrain.precision import (
    NEAREST,
    ROUNDING_RULES,
    Kahan,
    Master,
    Rounding,
    Stochastic,
    rounding_rule,
    stochastically_rounded,
)
from flaxtrain.precision.rounding import Stored
from tests.runs import differing_leaves

RULES = ROUNDING_RULES
KEY = jax.random.key(0)
SHORT = [jnp.bfloat16, jnp.float16]


def walk(rule: Rounding, params: Any, update: float, steps: int) -> Stored:
    """Adds the same update `steps` times, in one compiled loop."""

    def step(stored: Stored, index: Any) -> tuple[Stored, None]:
        sums = jax.tree.map(lambda leaf: leaf + update, rule.exact(*stored))
        return rule.stored(sums, stored.params, jax.random.fold_in(KEY, index)), None

    first = Stored(params, rule.init(params, params))
    return jax.jit(lambda first: jax.lax.scan(step, first, jnp.arange(steps))[0])(first)


def mean_of(params: Any) -> float:
    return float(np.mean(np.asarray(params["w"], np.float64)))


@pytest.mark.parametrize(
    ("name", "bar"), [("master", 0.004), ("kahan", 0.004), ("stochastic", 0.01)]
)
def test_a_thousand_small_updates_add_up(name: str, bar: float) -> None:
    params = {"w": jnp.ones(256, jnp.bfloat16)}
    found = walk(RULES[name], params, -1e-3, 1000)
    # The sum is 0. Near it bfloat16 is fine, but for what a rounding above left (2^-9 of 1).
    # Stochastic: 1000 roundings of at most 2^-8 are off by 0.06 each, 0.004 in the mean of 256.
    assert abs(mean_of(found.params)) < bar
    assert found.params["w"].dtype == jnp.bfloat16


def test_rounded_to_nearest_they_vanish() -> None:
    found = walk(RULES["nearest"], {"w": jnp.ones(4, jnp.bfloat16)}, -1e-3, 1000)
    np.testing.assert_array_equal(found.params["w"], 1.0)


@pytest.mark.parametrize("name", RULES)
def test_parameters_of_other_dtypes_are_left_to_the_sum(name: str) -> None:
    params = {
        "wide": jnp.ones(2),
        "short": jnp.ones(2, jnp.bfloat16),
        "count": jnp.arange(2),
        "none": None,
    }
    rule = RULES[name]
    carry = rule.init(params, params)
    assert jax.tree.structure(carry) == jax.tree.structure({"short": 0} if rule.keeps else {})
    exact = rule.exact(params, carry)
    assert exact["wide"] is params["wide"] and exact["count"] is params["count"]
    sums = {**exact, "wide": jnp.full(2, 3.0), "count": jnp.full(2, 7)}
    stored = rule.stored(sums, params, KEY)
    np.testing.assert_array_equal(stored.params["wide"], 3.0)
    np.testing.assert_array_equal(stored.params["count"], 7)
    assert stored.params["none"] is None and stored.params["short"].dtype == jnp.bfloat16
    assert jax.tree.structure(stored.carry) == jax.tree.structure(carry)


def test_the_rules_are_a_table_and_a_misspelt_one_is_named() -> None:
    assert {name for name, rule in RULES.items() if rule.keeps} == {"master", "kahan"}
    assert len({rule.description for rule in RULES.values()}) == 4
    assert all(rounding_rule(name) is rule for name, rule in RULES.items())
    with pytest.raises(UnknownNameError, match="did you mean 'kahan'") as caught:
        rounding_rule("kahn", where="a checkpoint")
    assert caught.value.where == "a checkpoint"


def test_rounding_to_nearest_keeps_nothing_and_changes_nothing() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    assert NEAREST.init(params, params) == {} and not jax.tree.leaves(
        NEAREST.init(params, params)
    )
    assert NEAREST.exact(params, {}) is params
    assert NEAREST.stored(params, params, KEY).params is params


@pytest.mark.parametrize("dtype", SHORT)
def test_the_first_values_are_kept_in_full_where_there_is_room(dtype: Any) -> None:
    full = {"w": jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)}
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype), full)
    master = Master().init(full, stored)
    assert not differing_leaves(Master().exact(stored, master), full)
    # A copy: the state may be donated, the weights it came from not.
    assert master["w"] is not full["w"]
    carry = Kahan().init(full, stored)
    assert carry["w"].dtype == dtype
    gap = jnp.abs(Kahan().exact(stored, carry)["w"] - full["w"])
    rounded = jnp.abs(stored["w"].astype(jnp.float32) - full["w"])
    assert float(gap.max()) < float(rounded.max()) / 100


@pytest.mark.parametrize("name", ["master", "kahan", "stochastic"])
def test_an_update_of_zero_changes_no_bit(name: str) -> None:
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.bfloat16)}
    once = walk(RULES[name], params, 0.01, 3)
    rule = RULES[name]
    again = rule.stored(rule.exact(*once), once.params, KEY)
    assert not differing_leaves(again, once)


@pytest.mark.parametrize("name", RULES)
def test_infinities_and_nan_stay_what_they_are(name: str) -> None:
    params = {"w": jnp.ones(3, jnp.float16)}
    rule = RULES[name]
    exact = rule.exact(params, rule.init(params, params))
    bad = {"w": jnp.array([np.nan, np.inf, -1e30], jnp.float32).astype(exact["w"].dtype)}
    found, carry = rule.stored(bad, params, KEY)
    np.testing.assert_array_equal(found["w"].astype(np.float32), [np.nan, np.inf, -np.inf])
    if name == "kahan":  # what is lost beside an infinity is no number
        np.testing.assert_array_equal(carry["w"], 0)


# Stochastic rounding, bit by bit.


def rounded_by_all(
    value: float, dtype: Any, bits: int, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """Rounds one number once with each value that `bits` random bits can have."""
    count = 2**bits

    def every(key: Any, shape: Any, kind: Any) -> Any:
        return jnp.arange(count, dtype=jnp.uint32).astype(kind)

    monkeypatch.setattr(jax.random, "bits", every)
    values = jnp.full(count, value, jnp.float32)
    return np.asarray(stochastically_rounded(values, dtype, KEY), np.float64)


VALUES = [1.003, -1.003, 0.1, 3.14159, 1.9999, -65000.3, 6.2e-5]


@pytest.mark.parametrize("value", [*VALUES, 1e30, -1e-30])
def test_bfloat16_is_right_on_average_over_all_random_bits(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rounded_by_all(value, jnp.bfloat16, 16, monkeypatch)
    _check_mean(found, value, jnp.bfloat16)


@pytest.mark.parametrize(
    ("value", "bits"),
    [*((value, 13) for value in VALUES[:-1]), (6.05e-5, 14), (-3.01e-6, 18), (1.9e-6, 19)],
)
def test_float16_is_right_on_average_over_all_random_bits_below_its_normal_range_too(
    value: float, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_mean(rounded_by_all(value, jnp.float16, bits, monkeypatch), value, jnp.float16)


def _check_mean(found: np.ndarray, value: float, dtype: Any) -> None:
    exact = float(np.float32(value))
    neighbours = sorted(set(found.tolist()))
    assert len(neighbours) == 2 and neighbours[0] < exact < neighbours[1]
    # No number of the dtype is between the two.
    middle = jnp.asarray((neighbours[0] + neighbours[1]) / 2, jnp.float32).astype(dtype)
    assert float(middle) in neighbours
    # Sums of powers of two, exact in float64.
    assert found.mean() == exact


def test_float16_below_its_smallest_number_is_right_to_two_to_the_minus_16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spread(key: Any, shape: Any, kind: Any) -> Any:
        return jnp.arange(2**16, dtype=jnp.uint32) << 16

    monkeypatch.setattr(jax.random, "bits", spread)
    for value in (1e-8, -5.9e-8, 1e-12):
        values = jnp.full(2**16, value, jnp.float32)
        found = np.asarray(stochastically_rounded(values, jnp.float16, KEY), np.float64)
        assert set(np.abs(found)) <= {0.0, 2.0**-24}
        assert abs(found.mean() - value) <= 2.0**-24 * 2.0**-16


@pytest.mark.parametrize("dtype", SHORT)
def test_numbers_of_the_dtype_itself_are_kept(dtype: Any) -> None:
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), dtype)
    values = every.astype(jnp.float32)
    found = stochastically_rounded(values, dtype, KEY)
    # CPU flushes what is below the normal range of float32 to zero; bfloat16 has that range.
    normal = (jnp.abs(values) >= 2.0**-126) | (values == 0)
    same = (found == every) | jnp.isnan(every) & jnp.isnan(found)
    assert bool(jnp.all(same | ~normal))


@pytest.mark.parametrize(("dtype", "edge"), [(jnp.float16, 65520.0), (jnp.bfloat16, 3.3962e38)])
def test_what_is_nearest_to_infinity_is_infinite_and_the_rest_finite_in_every_draw(
    dtype: Any, edge: float
) -> None:
    largest = float(jnp.finfo(dtype).max)
    values = jnp.asarray([edge, (largest + edge) / 2, -edge, -largest] * 64, jnp.float32)
    found = stochastically_rounded(values, dtype, KEY).astype(jnp.float32)
    np.testing.assert_array_equal(found, [np.inf, largest, -np.inf, -largest] * 64)


def test_parameters_of_equal_shape_are_rounded_by_different_random_numbers() -> None:
    rule, names = Stochastic(), ("a", "b")
    params = {name: jnp.ones(64, jnp.bfloat16) for name in names}
    sums = {name: jnp.full(64, 1.004) for name in names}
    both = rule.stored(sums, params, KEY).params
    assert differing_leaves({"w": both["a"]}, {"w": both["b"]})
    # A parameter's own numbers don't depend on what else is trained.
    alone = rule.stored({"b": sums["b"]}, {"b": params["b"]}, lambda: KEY).params
    assert not differing_leaves(alone["b"], both["b"])
