"""The loss functions that errors offer must run as they stand."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain import losses
from flaxtrain.data.suggestion import loss_example

X, Y, V = np.ones((4, 3), np.float32), np.array([0, 1, 2, 1], np.int32), np.ones(4, np.float32)


def run(text: str, batch: Any, prediction: Any) -> tuple[Any, list[Any]]:
    """Runs a suggestion with a model that notes what it is given."""
    seen: list[Any] = []

    def model(*args: Any) -> Any:
        seen.extend(args)
        return prediction

    made: list[Any] = []
    trainer = lambda model, spec, loss: made.append(loss)  # noqa: E731
    ft = SimpleNamespace(losses=losses, Trainer=trainer)
    exec(textwrap.dedent(text.strip("\n")), {"ft": ft, "model": model, "spec": None})
    return made[0](model, batch), seen


@pytest.mark.parametrize(
    ("batch", "names", "prediction", "inputs"),
    [
        ((X, Y, V), ["x"], X, [X]),
        ({"a": X, "b": 2 * X, "label": Y}, ["x"], X, [X, 2 * X]),
        ({"image": X, "id": Y, "label": Y}, ["image"], X, [X]),
        ({"image": X, "lable": Y}, [], X, [X]),
        ({"x": X, "price": V}, ["x"], V, [X]),
        ({"x": X, "price": V}, [], V, [X]),
        ({"image": X}, ["x"], X, [X]),
        ({"x": X, "target": X, "y": X}, ["x"], X, [X]),
        (X, ["x"], X, [X]),
    ],
)
def test_the_suggested_loss_runs_and_gives_one_value_per_example(
    batch: Any, names: list[str], prediction: Any, inputs: list[Any]
) -> None:
    text = loss_example(batch, names)
    loss, seen = run(text, jax.tree.map(jnp.asarray, batch), jnp.asarray(prediction))
    assert loss.shape == (4,)
    assert len(seen) == len(inputs)
    for found, wanted in zip(seen, inputs, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_integer_targets_get_a_cross_entropy_in_the_keys_of_the_batch() -> None:
    text = loss_example({"image": X, "id": Y, "label": Y}, ["image"])
    assert "prediction = model(batch['image'])" in text
    assert "softmax_cross_entropy_with_integer_labels(prediction, batch['label'])" in text
