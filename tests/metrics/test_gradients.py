"""Statistics of gradients by name, inside jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft

RNG = np.random.default_rng(0)
GRADS = {
    "encoder": {"kernel": RNG.normal(size=(3, 4)).astype(np.float32), "bias": np.ones(4, "f4")},
    "head": RNG.normal(size=(2,)).astype(np.float32) - 5.0,
}


def test_statistics_are_those_of_all_entries_together() -> None:
    stats = jax.jit(ft.metrics.gradient_stats)(GRADS)
    entries = np.concatenate(
        [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(GRADS)]
    )
    np.testing.assert_allclose(stats["norm"], np.linalg.norm(entries), rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], entries.mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["std"], entries.std(), rtol=1e-6)
    norms = {"encoder/bias": 2.0, "encoder/kernel": np.linalg.norm(GRADS["encoder"]["kernel"])}
    norms["head"] = np.linalg.norm(GRADS["head"])
    assert stats["norms"].keys() == norms.keys()
    for name, norm in norms.items():
        np.testing.assert_allclose(stats["norms"][name], norm, rtol=1e-6)


def test_a_large_mean_does_not_cost_the_deviation_its_digits() -> None:
    values = 1e4 + RNG.normal(size=1000)
    stats = ft.metrics.gradient_stats({"w": values.astype(np.float32)})
    exact = values.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(stats["std"], exact.std(), rtol=1e-3)


def test_low_precision_is_summed_in_float32_and_complex_entries_by_magnitude() -> None:
    ones = jnp.ones(10_000, jnp.bfloat16)
    stats = jax.jit(ft.metrics.gradient_stats)({"w": ones})
    assert stats["norm"].dtype == jnp.float32
    np.testing.assert_allclose(stats["norm"], 100.0, rtol=1e-6)
    stats = ft.metrics.gradient_stats({"z": jnp.array([3j, 4.0])})
    np.testing.assert_allclose(stats["norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(stats["std"], np.std([3j, 4.0]), rtol=1e-6)


def test_what_is_missing_or_no_float_is_left_out() -> None:
    stats = ft.metrics.gradient_stats({"a": None, "b": jnp.arange(3), "c": jnp.array([2.0])})
    assert stats["norms"].keys() == {"c"} and stats["norm"] == 2.0
    for empty in ({}, {"a": None}):
        stats = ft.metrics.gradient_stats(empty)
        assert (stats["norm"], stats["mean"], stats["std"]) == (0.0, 0.0, 0.0)
        assert ft.metrics.nonfinite_report(empty).total == 0


def test_entries_that_are_not_finite_are_counted_by_name() -> None:
    bad = {"a": {"w": jnp.array([[jnp.nan, jnp.inf], [1.0, -jnp.inf]])}, "b": jnp.ones(3)}
    report = jax.jit(ft.metrics.nonfinite_report)(bad)
    assert report.total == 3 and report.counts.keys() == {"a/w", "b"}
    assert report.names() == {"a/w": 3}
    assert str(report) == "not finite: a/w (3)"
    assert str(ft.metrics.nonfinite_report(GRADS)) == "all entries are finite"


def test_names_inside_jit_are_refused_with_the_way_out() -> None:
    def step(grads: object) -> object:
        report = ft.metrics.nonfinite_report(grads)
        assert "NonFiniteReport" in str(report)
        return report.names()

    with pytest.raises(ft.errors.StateError, match="return the report"):
        jax.jit(step)(GRADS)
