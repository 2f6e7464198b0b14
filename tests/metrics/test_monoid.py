from __future__ import annotations

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import LossError
from flaxtrain.metrics import Mean, Std, Terms, compute, empty_like, is_metric, merge

LOGITS = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
COLLECTED = clu.metrics.CollectingMetric.from_outputs(("loss",))


def examples() -> dict[str, tuple]:
    """One row per kind of metric: two batches, and the value over both."""
    labels = jnp.array([0, 1, 1])
    accuracy = clu.metrics.Accuracy.from_model_output
    return {
        "mean": (Mean.of(jnp.array([1.0, 3.0])), Mean.of(jnp.array([8.0])), 4.0),
        "weighted mean": (Mean.of(jnp.ones(2), jnp.array([1.0, 0.0])), Mean.of(3.0, 1.0), 2.0),
        "terms": (Mean.of(1.0) + 2 * Mean.of(1.0), Mean.of(3.0) + 2 * Mean.of(5.0), 8.0),
        "std": (Std.of(jnp.array([1.0, 3.0])), Std.of(jnp.array([2.0, 2.0])), 0.5**0.5),
        "clu average": (
            clu.metrics.Average.from_model_output(jnp.array([1.0, 2.0])),
            clu.metrics.Average.from_model_output(jnp.array([6.0])),
            3.0,
        ),
        "clu accuracy": (
            accuracy(logits=LOGITS, labels=labels),
            accuracy(logits=LOGITS[:1], labels=labels[:1]),
            0.75,
        ),
    }


@pytest.mark.parametrize("name", examples())
class TestEveryKind:
    def test_merge_and_compute_give_the_value_over_both(self, name):
        a, b, value = examples()[name]
        # three-term sums in float32
        assert float(compute(merge(a, b))) == pytest.approx(value, rel=1e-6)

    def test_empty_is_neutral_and_keeps_structure_and_dtypes(self, name):
        a, b, _ = examples()[name]
        empty = empty_like(a)
        assert jax.tree.structure(empty) == jax.tree.structure(a)
        assert [x.dtype for x in jax.tree.leaves(empty)] == [
            x.dtype for x in jax.tree.leaves(a)
        ]
        assert float(compute(merge(merge(empty, a), b))) == float(compute(merge(a, b)))
        assert float(compute(merge(a, empty_like(b)))) == float(compute(a))

    def test_it_can_be_carried_by_a_scan(self, name):
        a, b, value = examples()[name]
        metrics = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
        start = empty_like(a)
        total, _ = jax.lax.scan(lambda t, m: (merge(t, m), None), start, metrics)
        # three-term sums in float32
        assert float(compute(total)) == pytest.approx(value, rel=1e-6)


def test_mappings_are_merged_entry_by_entry():
    a = {"loss": Mean.of(1.0), "inner": {"std": Std.of(2.0)}}
    both = merge(merge(empty_like(a), a), {"loss": Mean.of(3.0), "inner": {"std": Std.of(4.0)}})
    assert jax.tree.map(float, compute(both)) == {"loss": 2.0, "inner": {"std": 1.0}}


def test_float64_metrics_have_float64_empties():
    with jax.enable_x64(True):
        average = clu.metrics.Average(jnp.array(1.0), jnp.array(1, jnp.int32))
        assert empty_like(average).total.dtype == jnp.float64
        assert empty_like(Mean.of(1.0)).sum.dtype == jnp.float64


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": Mean.of(1.0)}, {"b": Mean.of(1.0)}),
        ({"a": Mean.of(1.0)}, Mean.of(1.0)),
        (Mean.of(1.0), {"a": Mean.of(1.0)}),
        (Mean.of(1.0), Std.of(1.0)),
        (1.0, 2.0),
    ],
)
def test_what_does_not_belong_together_is_refused(a, b):
    with pytest.raises(LossError, match="can't merge"):
        merge(a, b)


def test_metrics_that_grow_are_refused_with_the_reason():
    batch = COLLECTED.from_model_output(loss=np.ones(3))
    with pytest.raises(LossError, match="changes shape when it is merged") as caught:
        merge(batch, batch)
    assert "predict" in caught.value.fix
    with pytest.raises(LossError, match="changes shape"):
        empty_like(batch)


@pytest.mark.parametrize("function", [compute, empty_like])
@pytest.mark.parametrize("value", [1.0, None, jnp.ones(2), [Mean.of(1.0)]])
def test_values_that_are_no_metrics_are_refused(function, value):
    with pytest.raises(LossError, match="is no metric"):
        function(value)


def test_terms_and_means_are_metrics_and_arrays_are_not():
    assert is_metric(Terms(())) and is_metric(Mean.empty())
    assert not is_metric(jnp.ones(1)) and not is_metric({"a": Mean.of(1.0)})
