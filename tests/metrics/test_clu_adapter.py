from __future__ import annotations

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ArgumentTypeError, LossError
from flaxtrain.metrics import Mean, Std, compute, merge
from flaxtrain.metrics.clu_adapter import (
    collection_metrics,
    is_clu_metric,
    is_collection,
    metric_classes,
)

Average = clu.metrics.Average
Collection = clu.metrics.Collection

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, size=6)
LOSS = RNG.uniform(size=6).astype(np.float32)
OUTPUTS = {"logits": LOGITS, "labels": LABELS, "loss": LOSS}


@flax.struct.dataclass
class Hits(clu.metrics.Metric):
    """A user's own metric that has never heard of masks."""

    hits: jax.Array
    seen: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.array(0, jnp.int32), jnp.array(0, jnp.int32))

    @classmethod
    def from_model_output(cls, logits, labels, **_):
        right = jnp.argmax(logits, -1) == labels
        return cls(right.sum(), jnp.array(labels.size, jnp.int32))

    def merge(self, other):
        return type(self)(self.hits + other.hits, self.seen + other.seen)

    def compute(self):
        return self.hits / self.seen


def margin(logits, **_):
    top = jnp.sort(logits, axis=-1)
    return jnp.mean(top[:, -1] - top[:, -2])


EVERYTHING = Collection.create(
    loss=Average.from_output("loss"),
    accuracy=clu.metrics.Accuracy,
    per_class=Average.from_output("logits"),
    last=clu.metrics.LastValue.from_output("loss"),
    deviation=clu.metrics.Std.from_output("loss"),
    hits=Hits,
    margin=Average.from_fun(margin),
)


def padded(rows=3):
    """The same outputs with rows of NaN and wild labels behind."""
    fill = {"logits": np.nan, "loss": np.nan, "labels": 99}
    outputs = {
        name: np.concatenate(
            [value, np.full((rows, *value.shape[1:]), fill[name], value.dtype)]
        )
        for name, value in OUTPUTS.items()
    }
    return outputs, jnp.array([1.0] * 6 + [0.0] * rows)


class TestExactUnderPadding:
    @pytest.mark.parametrize("name", metric_classes(EVERYTHING))
    def test_padded_rows_change_nothing(self, name):
        outputs, mask = padded()
        exact = compute(collection_metrics(EVERYTHING, OUTPUTS))[name]
        masked = compute(collection_metrics(EVERYTHING, outputs, mask))[name]
        # sums of six numbers in float32, in another order
        assert float(masked) == pytest.approx(float(exact), rel=1e-6)
        assert np.isfinite(exact)

    def test_batches_merge_to_the_value_over_all_rows_inside_jit(self):
        outputs, mask = padded(2)

        @jax.jit
        def step(outputs, mask):
            return collection_metrics(EVERYTHING, outputs, mask)

        halves = [
            step({k: v[rows] for k, v in outputs.items()}, mask[rows])
            for rows in (slice(0, 4), slice(4, 8))
        ]
        values = compute(merge(*halves))
        accuracy = np.mean(LOGITS.argmax(-1) == LABELS)
        # sums of six numbers in float32
        assert float(values["loss"]) == pytest.approx(LOSS.mean(), rel=1e-6)
        assert float(values["accuracy"]) == pytest.approx(accuracy, rel=1e-6)
        assert float(values["hits"]) == pytest.approx(accuracy, rel=1e-6)
        # clu's sum of squares loses two digits
        assert float(values["deviation"]) == pytest.approx(LOSS.std(), rel=1e-5)
        assert float(values["last"]) == pytest.approx(LOSS[4:].mean(), rel=1e-6)

    def test_a_batch_of_padding_only_counts_nothing(self):
        outputs, mask = padded()
        nothing = collection_metrics(EVERYTHING, outputs, jnp.zeros_like(mask))
        assert int(nothing["hits"].seen) == int(nothing["loss"].count) == 0

    def test_a_mask_per_token_is_joined_with_the_row_mask(self):
        loss = jnp.arange(6.0).reshape(3, 2)
        tokens = jnp.array([[1, 0], [1, 1], [1, 1]])
        metrics = Collection.create(loss=Average.from_output("loss"))
        outputs = {"loss": loss, "mask": tokens}
        found = collection_metrics(metrics, outputs, jnp.array([1, 1, 0]))["loss"]
        # entries 0, 2 and 3
        assert float(found.compute()) == pytest.approx(5 / 3) and int(found.count) == 3


class TestOutputs:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
    def test_integer_labels_of_any_width_are_accepted(self, dtype):
        metrics = Collection.create(accuracy=clu.metrics.Accuracy)
        outputs = {"logits": LOGITS, "labels": LABELS.astype(dtype)}
        found = collection_metrics(metrics, outputs)["accuracy"].compute()
        # a mean of six zeros and ones
        assert float(found) == pytest.approx(np.mean(LOGITS.argmax(-1) == LABELS), rel=1e-6)

    def test_only_what_the_metrics_ask_for_is_needed(self):
        metrics = Collection.create(loss=Average.from_output("loss"))
        assert list(collection_metrics(metrics, {"loss": LOSS})) == ["loss"]

    @pytest.mark.parametrize("mask", [None, jnp.ones(6)])
    @pytest.mark.parametrize(
        ("metric", "asked"),
        [
            (Average.from_output("perplexity"), "perplexity"),
            (clu.metrics.Accuracy, "logits"),
            (Average, "values"),
        ],
    )
    def test_a_missing_output_is_told_with_those_that_are_there(self, metric, asked, mask):
        with pytest.raises(LossError, match=f"asks for the model output {asked!r}") as caught:
            collection_metrics(
                Collection.create(quality=metric), {"loss": LOSS, "labels": LABELS}, mask
            )
        assert caught.value.where == "metric 'quality'"
        assert caught.value.fix.endswith("Available: labels, loss")

    def test_a_mean_is_no_output(self):
        metrics = Collection.create(loss=Average.from_output("loss"))
        with pytest.raises(LossError, match="asks for the model output 'loss'"):
            collection_metrics(metrics, {"loss": Mean.of(LOSS), "labels": LABELS})

    def test_a_scalar_is_refused_on_a_batch_with_a_mask(self):
        metrics = Collection.create(loss=Average.from_output("loss"))
        with pytest.raises(LossError, match="it reads only loss, which has no batch axis"):
            collection_metrics(metrics, {"loss": jnp.float32(1)}, jnp.ones(6))
        assert float(collection_metrics(metrics, {"loss": 1.0})["loss"].compute()) == 1.0

    def test_the_last_value_of_a_scalar_is_what_it_is(self):
        metrics = Collection.create(rate=clu.metrics.LastValue.from_output("rate"))
        found = collection_metrics(metrics, {"rate": jnp.float32(0.5)}, jnp.array([1.0, 0.0]))
        assert float(found["rate"].compute()) == 0.5

    def test_metrics_that_collect_are_refused_with_the_reason(self):
        metrics = Collection.create(all=clu.metrics.CollectingMetric.from_outputs(("loss",)))
        with pytest.raises(LossError, match="shape changes from step to step") as caught:
            collection_metrics(metrics, OUTPUTS)
        assert "predict" in caught.value.fix


def test_the_deviation_works_although_clus_own_does_not():
    found = collection_metrics(
        Collection.create(std=clu.metrics.Std.from_output("loss")), OUTPUTS
    )
    assert isinstance(found["std"], Std)
    # clu's sum of squares loses two digits of float32
    assert float(found["std"].compute()) == pytest.approx(LOSS.std(), rel=1e-5)


class TestCollections:
    def test_classes_and_instances_are_recognised(self):
        cls = Collection.create(accuracy=clu.metrics.Accuracy)
        instance = cls.empty()
        assert is_collection(cls) and is_collection(instance)
        assert is_clu_metric(Average) and is_clu_metric(instance.accuracy)
        for other in (None, dict, Mean, Mean.of(1.0), {"a": Average}):
            assert not is_collection(other) and not is_clu_metric(other)
        assert (
            metric_classes(instance)
            == metric_classes(cls)
            == {"accuracy": clu.metrics.Accuracy}
        )

    def test_inherited_metrics_are_kept(self):
        base = Collection.create(loss=Average.from_output("loss"))
        derived = type(
            "Derived", (base,), {"__annotations__": {"accuracy": clu.metrics.Accuracy}}
        )
        assert list(metric_classes(derived)) == ["loss", "accuracy"]

    def test_annotations_that_are_text_are_explained(self):
        # This file has `from __future__ import annotations` as well.
        @flax.struct.dataclass
        class Mine(Collection):
            accuracy: clu.metrics.Accuracy

        with pytest.raises(
            ArgumentTypeError, match="from __future__ import annotations"
        ) as caught:
            collection_metrics(Mine, OUTPUTS)
        assert caught.value.where == "Mine.accuracy"
        assert "Collection.create(accuracy=clu.metrics.Accuracy)" in caught.value.fix

    def test_annotations_that_are_no_metrics_are_refused(self):
        wrong = type("Wrong", (Collection,), {"__annotations__": {"loss": float}})
        with pytest.raises(ArgumentTypeError, match="no metric class"):
            metric_classes(wrong)

    def test_anything_else_is_refused(self):
        with pytest.raises(ArgumentTypeError, match=r"no clu\.metrics\.Collection"):
            collection_metrics({"accuracy": clu.metrics.Accuracy}, OUTPUTS)
