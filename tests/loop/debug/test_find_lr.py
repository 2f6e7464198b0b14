"""`Trainer.find_lr`: the range test of the learning rate, on copies."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import optim
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError, DataError
from flaxtrain.loop.debug.find_lr import swept
from flaxtrain.loop.debug.lr_curve import LearningRateCurve
from tests.runs import bits, refused

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
DATA = {"x": X, "label": (X @ RNG.normal(size=(4, 3))).argmax(-1).astype(np.int32)}
SPEC = ft.OptSpec("sgd", learning_rate=0.1)
MODEL = nn.Dense(3)


def test_the_trainer_keeps_every_bit_and_the_next_fit_is_what_it_would_have_been() -> None:
    trainers = [ft.Trainer(MODEL, SPEC, verbose=False) for _ in range(2)]
    for trainer in trainers:
        trainer.fit(DATA, steps=3, batch_size=16)
    state = trainers[0].state
    before = bits(state)
    first = trainers[0].find_lr(DATA, steps=20, batch_size=16)
    again = trainers[0].find_lr(DATA, steps=20, batch_size=16)
    assert trainers[0].state is state and bits(state) == before
    assert trainers[0].spec == SPEC and trainers[0].compilations["train"] == 1
    np.testing.assert_array_equal(first.losses, again.losses)
    for trainer in trainers:
        trainer.fit(DATA, steps=3, batch_size=16)
    assert bits(trainers[0].state) == bits(trainers[1].state)
    # It began with the weights of the trainer.
    fresh = ft.Trainer(MODEL, SPEC, verbose=False).find_lr(DATA, steps=20, batch_size=16)
    assert first.losses[0] < fresh.losses[0]


def test_the_losses_are_those_of_plain_steps_at_the_rates_of_the_sweep() -> None:
    batch = {key: value[:16] for key, value in DATA.items()}
    curve = ft.Trainer(MODEL, SPEC, verbose=False).find_lr(
        [batch], min=1e-3, max=10.0, steps=12, smoothing=0.5
    )
    assert len(curve.losses) == 12 and curve.stopped_because == "all steps were made"
    np.testing.assert_allclose(curve.learning_rates, np.geomspace(1e-3, 10.0, 12), rtol=1e-12)
    state = ft.make_recipe(MODEL, SPEC, batch).init(0)
    kernel, bias = (np.asarray(state.params[k], np.float64) for k in ("kernel", "bias"))
    losses, hot = [], np.eye(3)[batch["label"]]
    for rate in curve.learning_rates:
        logits = batch["x"] @ kernel + bias
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses.append(-np.mean(np.log((share * hot).sum(-1))))
        slope = (share - hot) / len(hot)
        kernel, bias = kernel - rate * batch["x"].T @ slope, bias - rate * slope.sum(0)
    # Twelve steps in float32 against float64.
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-4)
    average, smoothed = 0.0, []
    for count, loss in enumerate(curve.losses, start=1):
        average = 0.5 * average + 0.5 * loss
        smoothed.append(average / (1 - 0.5**count))
    np.testing.assert_allclose(curve.smoothed, smoothed, rtol=1e-12)


def test_it_stops_where_the_loss_diverges_and_suggests_a_stable_rate() -> None:
    """Of a quadratic with curvature 2 a, descent is stable below 1 / a."""
    x = np.diag([1.0, 2.0]).astype(np.float32)
    data = [{"x": x, "y": np.array([[1.0], [2.0]], np.float32)}]
    model = nn.Dense(1, use_bias=False)
    curve = ft.Trainer(model, SPEC, verbose=False).find_lr(data, min=1e-4, max=1e3)
    # The loss is the mean over two rows: its largest curvature is 4.
    assert "4 times the lowest" in curve.stopped_because
    assert curve.suggestion is not None and 1e-3 < curve.suggestion < 2 / 4
    assert len(curve.losses) == len(curve.smoothed) == len(curve.learning_rates) < 100


def test_groups_keep_their_proportion() -> None:
    schedule = ft.schedules.warmup_cosine_decay_schedule(0.0, 0.1, "10%", "100%")
    groups = [
        ft.Group("a/**", lr_mult=10.0),
        ft.Group("b/**", learning_rate=0.02, lr_mult=3.0),
        ft.Group("c/**", schedule=ft.schedules.constant_schedule(0.4)),
    ]
    spec = ft.OptSpec("adam", schedule, groups=groups, freeze=ft.Freeze("d", until=5, rewarm=3))
    new = swept(spec, ft.schedules.constant_schedule(1.0), Horizon(100))
    assert [group.lr_mult for group in new.groups] == pytest.approx([10.0, 0.6, 4.0], rel=1e-5)
    assert all(g.learning_rate is None and g.schedule is None for g in new.groups)
    assert new.freeze[0].rewarm == 0 and spec.freeze[0].rewarm == 3


def test_spikes_and_averages_have_no_part_in_it() -> None:
    spec = SPEC.replace(spikes=ft.Spikes(0.1, window=3), ema=0.9)
    sweep, horizon = ft.schedules.constant_schedule(1.0), Horizon(100)
    assert swept(spec, sweep, horizon) == swept(SPEC, sweep, horizon)
    slow = SPEC.replace(ema=ft.Lookahead(2))  # the one that changes training
    assert swept(slow, sweep, horizon).ema == ft.Lookahead(2)
    # One label is wrong in one batch: its loss jumps, and the test goes on.
    batches = [{key: value[i : i + 16] for key, value in DATA.items()} for i in (0, 16, 32, 48)]
    batches.append({**batches[0], "x": 20 * batches[0]["x"]})
    trainer = ft.Trainer(
        MODEL, spec, verbose=False, loss_scale=ft.DynamicScale(init=8.0, growth_interval=100)
    )
    curve = trainer.find_lr(batches, min=1e-9, max=1e-8, steps=10)
    assert curve.stopped_because == "all steps were made"
    # All losses are there, those that the rule would reject too.
    assert (curve.losses > 3 * np.median(curve.losses)).nonzero()[0].tolist() == [4, 9]


def test_what_has_no_rate_of_ours_and_wrong_arguments_are_refused() -> None:
    trainer = ft.Trainer(MODEL, ft.OptSpec(optim.sgd(0.1)), verbose=False)
    refused(lambda: trainer.find_lr(DATA), ArgumentError, "keeps its learning rate to itself")
    trainer = ft.Trainer(MODEL, SPEC, verbose=False)
    refused(lambda: trainer.find_lr(DATA, min=0.0), ArgumentError, "min=0.0 is out of range")
    refused(lambda: trainer.find_lr(DATA, min=1.0, max=0.5), ArgumentError, "max=0.5")
    refused(lambda: trainer.find_lr(DATA, steps=5), ArgumentError, "steps=5 is too small")
    refused(lambda: trainer.find_lr(DATA, smoothing=1.0), ArgumentError, "smoothing=1.0")
    refused(lambda: trainer.find_lr(iter([DATA])), DataError, "can be iterated once only")


@pytest.mark.slow
def test_a_batch_without_weight_does_not_end_it() -> None:
    data = {**DATA, "weight": np.ones(len(DATA["x"]), np.float32)}
    batches = [{key: leaf[i : i + 8] for key, leaf in data.items()} for i in (0, 8, 16)]
    without = {**batches[0], "weight": np.zeros(8, np.float32)}
    curves = [
        ft.Trainer(MODEL, SPEC).find_lr(ds, steps=12)
        for ds in (batches, [*batches[:2], without, batches[2]])
    ]
    assert curves[0].losses.tolist() == curves[1].losses.tolist()
    nothing = ft.Trainer(MODEL, SPEC).find_lr([without], steps=12)
    assert len(nothing.losses) == 0


def test_a_first_step_that_is_not_finite_leaves_an_empty_curve() -> None:
    data = [{"x": np.full((4, 4), np.nan, np.float32), "label": np.zeros(4, np.int32)}]
    found = ft.Trainer(MODEL, SPEC, verbose=False).find_lr(data, steps=10)
    assert len(found.losses) == 0 and found.suggestion is None
    assert "a step was rejected, or its loss was not finite" in str(found)


def curve(suggestion: float | None = 1e-2) -> LearningRateCurve:
    rates = np.logspace(-4, 0, 41)
    smoothed = 2 - 1 / (1 + np.exp(-4 * np.log10(rates / 1e-2)))
    return LearningRateCurve(rates, smoothed + 0.1, smoothed, suggestion, "all steps were made")


def test_the_picture_has_axes_curves_and_the_suggestion(tmp_path: Path) -> None:
    path = curve().plot(tmp_path / "rate.svg")
    root = ElementTree.parse(path).getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1e-4", "1e-3", "1e-2", "1e-1", "1e0"} <= set(texts)
    assert {"learning rate (log scale)", "training loss", "suggestion 0.01"} <= set(texts)
    raw, smooth = root.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(raw.attrib["points"].split()) == len(smooth.attrib["points"].split()) == 41
    numbers = [float(n) for pair in smooth.attrib["points"].split() for n in pair.split(",")]
    assert numbers[0] == 70 and numbers[-2] == 630  # the frame, from left to right
    assert numbers[1] < numbers[-1]  # down on the page is a lower loss


@pytest.mark.usefixtures("unchecked_types")
def test_a_path_of_another_type_is_refused() -> None:
    wrong: Any = 3
    refused(lambda: curve().plot(wrong), ArgumentTypeError, "not a path")


def test_the_text_shows_curve_and_suggestion() -> None:
    lines = str(curve()).splitlines()
    assert len(lines) == 12 and "suggested learning rate: 0.01" in lines[-1]
    assert lines[1].startswith("*") and all("|" in line for line in lines[:3])
    assert "no suggestion: the loss did not fall" in str(curve(None))


def test_a_picture_that_can_not_be_drawn_is_refused(tmp_path: Path) -> None:
    refused(lambda: curve().plot(tmp_path / "rate.png"), ArgumentError, "does not end in .svg")
    none = LearningRateCurve(*[np.zeros(0)] * 3, None, "a step was rejected")
    refused(lambda: none.plot(tmp_path / "rate.svg"), ArgumentError, "a step was rejected")
    assert "no suggestion" in str(none)
