"""`Trainer.check`: one model with one planted defect for each finding, and sound models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import DataError
from tests.models import example
from tests.runs import bits, refused

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype(np.float32)
DATA = {"x": X, "label": (np.arange(8) % 3).astype(np.int32)}
SPEC = ft.OptSpec("sgd", learning_rate=0.1)


def check(model: Any, data: Any = DATA, spec: ft.OptSpec = SPEC, **kwargs: Any) -> Any:
    """Runs the check; the trainer must be as it was."""
    trainer = ft.Trainer(model, spec, verbose=False, **kwargs)
    report = trainer.check(data, batch_size=8)
    assert trainer.state is None and trainer.recipe is None
    assert trainer.compilations == {"train": 0, "eval": 0}
    return report


def verdicts(report: Any) -> dict[str, str]:
    return {o.check: o.verdict for o in report.observations}


class Net(nn.Module):
    """A dense layer, something between, and the output layer."""

    between: Callable[..., Any]
    out: int = 3

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(self.out)(self.between(nn.Dense(6)(x), train))


def test_a_sound_model_has_no_findings() -> None:
    report = check(Net(lambda h, train: nn.relu(h)))
    assert report.ok and report.findings == ()
    assert set(verdicts(report).values()) == {"ok"} and len(report.observations) == 9
    assert "no findings" in str(report)
    several = SPEC.replace(accumulate=ft.AccumulateBatches(3))
    assert check(nn.Dense(3), spec=several).ok


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("CNN", marks=pytest.mark.slow),
        pytest.param("ViT", marks=pytest.mark.slow),
        pytest.param("GPT", marks=pytest.mark.slow),
        pytest.param("ResNet", marks=pytest.mark.slow),
        pytest.param("LSTM", marks=pytest.mark.slow),
    ],
)
def test_the_models_of_the_suite_have_no_findings(name: str) -> None:
    model, x = example(name, batch=8)
    tokens = jnp.issubdtype(x.dtype, jnp.integer)
    classes, shape = (11, x.shape) if name == "GPT" else (3, (8,))
    x = RNG.integers(0, 11, x.shape) if tokens else RNG.normal(size=x.shape)
    x = x.astype(np.int32 if tokens else np.float32)
    label = RNG.integers(0, classes, shape).astype(np.int32)
    report = check(model, {"tokens" if tokens else "x": x, "label": label})
    assert report.ok, report
    norm = name in ("CNN", "ResNet")
    assert verdicts(report)["rows in training"] == ("expected" if norm else "ok")
    if norm:
        assert "BatchNorm" in str(report)


def shifted(data: Any, **changes: Any) -> Any:
    return {**data, **changes}


def leaking_in_training(h: Any, train: bool) -> Any:
    return h - h.mean(0, keepdims=True) if train else h


def leaking_beside_batch_norm(h: Any, train: bool) -> Any:
    return leaking_in_training(nn.BatchNorm(use_running_average=not train)(h), train)


def random_in_a_callback(h: Any, train: bool) -> Any:
    if train:
        return h
    shape = jax.ShapeDtypeStruct((), np.float32)
    # io_callback may not be left out or run once for two calls.
    noise = jax.experimental.io_callback(lambda: np.float32(NOISE.normal()), shape)
    return h + noise


NOISE = np.random.default_rng(1)

DEFECTS: dict[str, tuple[Any, Any, str, str]] = {
    # name: (model, data, the only finding, what it says)
    "stop_gradient": (
        Net(lambda h, train: jax.lax.stop_gradient(h)),
        DATA,
        "gradients",
        "exactly zero for Dense_1/bias, Dense_1/kernel",
    ),
    "never fires": (
        Net(lambda h, train: nn.relu(h - 1e3)),
        DATA,
        "gradients",
        "exactly zero for",
    ),
    "leak in training": (Net(leaking_in_training), DATA, "rows in training", "8 of 8 rows"),
    "leak beside BatchNorm": (
        Net(leaking_beside_batch_norm),
        DATA,
        "rows in training",
        "BatchNorm aside",
    ),
    "large logits": (
        Net(lambda h, train: 30 * h),
        DATA,
        "loss at the start",
        "at most 3.099 is usual",
    ),
    "targets far off": (
        Net(lambda h, train: h),
        {"x": X, "y": (1000 + X[:, :3])},
        "loss at the start",
        "and at most",
    ),
    "position": (
        Net(lambda h, train: h + jnp.arange(len(h), dtype=h.dtype)[:, None] * (not train)),
        DATA,
        "order of rows",
        "other outputs",
    ),
    "random": (
        Net(random_in_a_callback),
        DATA,
        "evaluation again",
        "two evaluations of the same batch differ",
    ),
    "drawn while tracing": (
        Net(lambda h, train: h + (0.0 if train else float(NOISE.normal()))),
        DATA,
        "evaluation again",
        "each time that it is compiled",
    ),
    "labels": (
        Net(lambda h, train: h),
        shifted(DATA, label=DATA["label"] + 1),
        "labels",
        "label 3 is out of range",
    ),
    "not finite": (
        Net(lambda h, train: jnp.sqrt(h - h) if train else h),
        DATA,
        "finite",
        "the gradient of Dense_1/bias, Dense_1/kernel",
    ),
}


# The others take as long, and are run with the slow tests.
QUICK = ("stop_gradient", "leak beside BatchNorm", "position", "labels")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DEFECTS],
)
def test_each_defect_is_found_and_nothing_else(name: str) -> None:
    model, data, wanted, text = DEFECTS[name]
    report = check(model, data)
    assert len(report.findings) == 1, report
    [found] = report.findings
    assert found.check == wanted and text in found.seen and found.fix, report
    assert not report.ok and found.seen in str(report) and found.fix in str(report)


def test_a_leak_in_evaluation_is_found_and_padding_is_left_out() -> None:
    report = check(Net(lambda h, train: h if train else h - h.mean(0, keepdims=True)))
    assert [finding.check for finding in report.findings] == ["rows in evaluation"]
    assert verdicts(report)["padding"] == "not looked at"


@pytest.mark.slow
def test_a_loss_that_forgets_the_row_mask_is_found_by_padding() -> None:
    def loss(model: Any, batch: Any) -> Any:
        values = ft.losses.softmax_cross_entropy_with_integer_labels(
            model(batch["x"]), batch["label"]
        )
        return values, {"worst": values - jax.lax.stop_gradient(values[-1]) + len(values)}

    report = check(Net(lambda h, train: h), loss=loss)
    assert "padding" in [finding.check for finding in report.findings]


class Unused(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        nn.Dense(2, name="aside")(x)
        return nn.Dense(3, name="head")(x)


def test_parameters_that_the_loss_does_not_use_are_named() -> None:
    [found] = check(Unused()).findings
    assert found.check == "gradients"
    assert "does not use aside/bias, aside/kernel" in found.seen


@pytest.mark.slow
def test_what_is_frozen_for_ever_need_not_be_used() -> None:
    assert check(Unused(), spec=SPEC.replace(freeze="aside/**")).ok
    # Frozen at first is trained all the same.
    later = SPEC.replace(freeze=ft.Freeze("aside/**", until=5))
    assert [finding.check for finding in check(Unused(), spec=later).findings] == ["gradients"]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, on: Any) -> tuple[Any, None]:
        return x + on * nn.Dense(4, name="up")(x), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(x, jnp.array([1.0, 0.0, 1.0]))
        return nn.Dense(3, name="head")(x)


@pytest.mark.slow
def test_a_dead_layer_of_a_stack_is_named() -> None:
    report = check(Stack())
    assert len(report.findings) == 1, report
    [found] = report.findings
    assert "layers/up/kernel (layer 1)" in found.seen


class ZeroHead(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(6, name="body")(x))
        return nn.Dense(3, kernel_init=nn.initializers.zeros, name="head")(x)


@pytest.mark.slow
def test_parameters_behind_a_zero_are_no_finding() -> None:
    report = check(ZeroHead())
    assert report.ok and "all but body/bias, body/kernel" in str(report)


@pytest.mark.slow
def test_what_gives_no_occasion_is_not_looked_at() -> None:
    def scalar(model: Any, batch: Any) -> Any:
        return jnp.mean(model(batch["x"]) ** 2)

    same = shifted(DATA, x=np.ones_like(X), label=np.ones_like(DATA["label"]))
    report = check(Net(lambda h, train: h), same, loss=scalar)
    skipped = {name for name, verdict in verdicts(report).items() if verdict != "ok"}
    assert skipped == {
        "labels",
        "loss at the start",
        "rows in training",
        "rows in evaluation",
        "padding",  # a scalar refuses it
    }
    assert report.ok


@pytest.mark.slow
def test_the_state_of_a_trained_trainer_keeps_every_bit() -> None:
    trainer = ft.Trainer(Net(lambda h, train: h), SPEC, verbose=False)
    trainer.fit(DATA, steps=2, batch_size=8)
    before = bits(trainer.state.params)
    state, recipe = trainer.state, trainer.recipe
    assert trainer.check(DATA, batch_size=8).ok
    assert trainer.state is state and trainer.recipe is recipe
    assert bits(trainer.state.params) == before
    trainer.fit(DATA, steps=1, batch_size=8)
    assert int(trainer.state.step) == 3


def test_an_iterator_is_refused_before_anything_is_taken_out() -> None:
    trainer = ft.Trainer(Net(lambda h, train: h), SPEC, verbose=False)
    source = iter([DATA])
    refused(lambda: trainer.check(source), DataError, "can be iterated once only")
    assert next(source) is DATA
