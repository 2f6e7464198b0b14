"""What a loss function may return, and what the step makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.train.contract import call_loss
from flaxtrain.train.model import BoundModel

VALUES = np.array([1.0, 2.0, 3.0, 100.0], np.float32)
BATCH = {"x": VALUES[:, None]}
MASK = np.array([True, True, True, False])
WEIGHT = np.array([2.0, 1.0, 1.0, 0.0], np.float32)


def output(loss_fn: Callable[..., Any], mask: Any = None, weight: Any = None) -> Any:
    weight = mask.astype(np.float32) if weight is None and mask is not None else weight
    return call_loss(loss_fn, BoundModel(nn.Dense(1), {}, mask=mask, weight=weight), BATCH)


def per_example(model: Any, batch: Any) -> Any:
    return batch["x"][:, 0]


FORMS: dict[str, Callable[..., Any]] = {
    "per-example values": per_example,
    "a Mean with the mask": lambda m, b: ft.Mean.of(b["x"], m.mask),
    "a pair": lambda m, b: (per_example(m, b), {}),
    "a sum of one term": lambda m, b: 1.0 * (ft.Mean.of(b["x"], m.mask) + ft.Mean.penalty(0.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_loss_gives_the_mean_over_the_rows_that_count(form: str) -> None:
    assert float(output(FORMS[form]).loss.compute()) == pytest.approx(VALUES.mean())
    assert float(output(FORMS[form], MASK).loss.compute()) == 2.0


def test_a_scalar_is_taken_as_it_is_and_weighs_as_many_as_the_rows() -> None:
    found = output(lambda m, b: b["x"].mean()).loss
    assert float(found.compute()) == VALUES.mean()
    assert [float(term.weight) for term in found.terms] == [4.0]
    assert float(output(lambda m, b: 2.5).loss.compute()) == 2.5


def test_per_example_values_are_weighted_by_the_examples() -> None:
    found = output(per_example, MASK, WEIGHT)
    assert float(found.loss.compute()) == (2 * 1 + 2 + 3) / 4


def test_terms_keep_weights_of_their_own() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        first_two = np.array([True, True, False, False])
        return ft.Mean.of(batch["x"], model.mask) + 0.5 * ft.Mean.of(batch["x"], first_two)

    assert float(output(loss_fn, MASK).loss.compute()) == 2.0 + 0.5 * 1.5


METRICS: dict[str, tuple[Any, float]] = {
    "per-example values": (VALUES, 2.0),
    "booleans": (VALUES > 1.5, 2 / 3),
    "integers": (np.array([1, 2, 3, 9]), 2.0),
    "a Mean": (ft.Mean.of(VALUES, MASK), 2.0),
    "a metric of clu": (
        clu_metrics.Average.from_model_output(VALUES, mask=MASK),
        2.0,
    ),
}


@pytest.mark.parametrize("form", METRICS)
def test_every_form_of_a_metric_is_computed_over_the_rows_that_count(form: str) -> None:
    value, expected = METRICS[form]
    found = output(lambda m, b: (per_example(m, b), {"metric": value}), MASK)
    assert list(found.metrics) == ["loss", "metric"]
    assert float(found.metrics["metric"].compute()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_all_means_have_one_structure(weighted: bool) -> None:
    """A full batch and a padded one are merged into the same window."""
    found = output(lambda m, b: ft.Mean.of(b["x"], m.mask), MASK if weighted else None)
    assert jax.tree.structure(found) == jax.tree.structure(output(per_example))


WRONG: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "scalar with a mask": (lambda m, b: b["x"].mean(), MASK, "'loss' is a scalar"),
    "scalar metric with a mask": (
        lambda m, b: (per_example(m, b), {"norm": b["x"].mean()}),
        MASK,
        "'norm' is a scalar",
    ),
    "Mean without the mask": (lambda m, b: ft.Mean.of(b["x"]), MASK, "is a Mean over all rows"),
    "one unmasked term of two": (
        lambda m, b: ft.Mean.of(b["x"], m.mask) + ft.Mean.of(b["x"]),
        MASK,
        "is a Mean over all rows",
    ),
    "values of another shape": (lambda m, b: b["x"], None, r"has shape \(4, 1\), the batch 4"),
    "too few values": (lambda m, b: b["x"][:3, 0], None, r"has shape \(3,\), the batch 4"),
    "None": (lambda m, b: None, None, "'loss' is a NoneType"),
    "text": (lambda m, b: "low", None, "'loss' is a str"),
    "a dict": (lambda m, b: {"loss": per_example(m, b)}, None, "'loss' is a dict"),
    "integers": (lambda m, b: np.arange(4), None, "has dtype int32, which has no gradient"),
    "complex values": (lambda m, b: b["x"][:, 0] * 1j, None, "'loss' is complex"),
    "three things": (lambda m, b: (per_example(m, b), {}, 1), None, "returned 3 things"),
    "a bare metric": (
        lambda m, b: (per_example(m, b), jnp.ones(4)),
        None,
        "an array, not a dict",
    ),
    "a metric of clu as loss": (
        lambda m, b: clu_metrics.Average.from_model_output(VALUES),
        None,
        "the loss is an Average",
    ),
    "a reserved name": (
        lambda m, b: (per_example(m, b), {"grad_norm": per_example(m, b)}),
        None,
        "'grad_norm' is one that the step itself reports",
    ),
    "a number as a name": (
        lambda m, b: (per_example(m, b), {1: VALUES}),
        None,
        "is named 1, which is no string",
    ),
}


@pytest.mark.parametrize("use", WRONG)
def test_a_broken_contract_is_refused(use: str) -> None:
    loss_fn, mask, text = WRONG[use]
    with pytest.raises(errors.LossError, match=text) as caught:
        output(loss_fn, mask)
    assert caught.value.where == "loss_fn" and caught.value.fix


def test_a_part_of_the_loss_may_be_named_after_it_but_no_group_of_a_norm() -> None:
    result = output(lambda m, b: (per_example(m, b), {"loss/kl": per_example(m, b)}))
    assert "loss/kl" in result.metrics
    with pytest.raises(errors.LossError, match="'grad_norm/head' is one that the step"):
        output(lambda m, b: (per_example(m, b), {"grad_norm/head": per_example(m, b)}))


def test_a_key_error_of_the_loss_function_names_the_keys_that_are_there() -> None:
    with pytest.raises(errors.MissingKeyError, match="KeyError: 'X'") as caught:
        output(lambda m, b: b["X"])
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.fix == "did you mean 'x'? The batch has 'x'"


def test_another_key_error_is_left_alone() -> None:
    with pytest.raises(KeyError) as caught:
        output(lambda m, b: {}["x"])  # the batch has such a key: something else lacks it
    assert not isinstance(caught.value, ft.FlaxtrainError)


def test_a_collection_may_define_the_loss_that_is_shown_as_flaxs_examples_do() -> None:
    collection = clu_metrics.Collection.create(
        accuracy=clu_metrics.Accuracy, loss=clu_metrics.Average.from_output("loss")
    )
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    data = {"x": x, "label": (x[:, 0] > 0).astype(np.int32)}
    plain, collected = (
        ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", 0.1), metrics=metrics, verbose=False)
        for metrics in (None, collection)
    )
    rows = []
    for trainer in (plain, collected):
        trainer.fit(data, steps=2, batch_size=8)  # 10 = 8 + 2: the second batch is padded
        rows.append(trainer.evaluate(data, batch_size=8))
    assert rows[0].keys() == rows[1].keys() == {"loss", "accuracy"}
    # Sums in float32, in another order.
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_labels_are_checked_with_a_collection_too() -> None:
    collection = clu_metrics.Collection.create(accuracy=clu_metrics.Accuracy)
    trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", 0.1), metrics=collection, verbose=False)
    data = {"x": np.ones((4, 3), np.float32), "label": np.array([0, 1, 2, 0], np.int32)}
    with pytest.raises(errors.LossError, match="label 2 is out of range"):
        trainer.fit(data, steps=1, batch_size=4)
