from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.metrics import Mean, Std


@pytest.mark.parametrize("kind", [Mean, Std])
@pytest.mark.parametrize(
    ("values", "weight", "expected"),
    [
        ("bfloat16", "float32", "float32"),
        ("float32", "float64", "float32"),
        ("float64", "float32", "float64"),
        # What has no precision of its own goes by its weights.
        ("bool", "float32", "float32"),
        ("bool", "float64", "float64"),
        ("int64", "float64", "float64"),
        ("int64", "bool", "float32"),
        ("bool", None, "float32"),
    ],
)
def test_sums_are_float32_or_as_exact_as_what_is_summed_up(
    kind: Any, values: str, weight: str | None, expected: str
) -> None:
    with jax.enable_x64(True):
        weights = None if weight is None else jnp.ones(3, weight)
        found = jax.eval_shape(kind.of, jnp.ones(3, values), weights)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {expected}


def test_weighted_hits_are_counted_with_the_digits_of_their_weights() -> None:
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 1000)
    hits = weight > 1.0
    with jax.enable_x64(True):
        found = float(Mean.of(hits, weight).compute())
    # Roundings of float64 in a sum of a thousand numbers.
    assert found == pytest.approx(weight[hits].sum() / weight.sum(), rel=1e-13)
