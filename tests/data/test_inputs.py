from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.data import example_weights, model_inputs, target
from flaxtrain.errors import LossError, MissingKeyError

X, Y, W = np.ones((4, 3)), np.array([0, 1, 2, 1]), np.array([1.0, 0.0, 2.0, 1.0])


def taken(batch: Any, names: list[str], required: list[str] | None = None) -> Any:
    """Returns the positions and names under which entries reach the model."""
    args, kwargs = model_inputs(batch, names, required)
    return len(args), sorted(kwargs)


@pytest.mark.parametrize(
    ("batch", "names", "wanted"),
    [
        ((X, Y), ["x"], (1, [])),
        ((X,), ["x"], (1, [])),
        (X, ["x"], (1, [])),
        (({"a": X}, Y), ["x"], (1, [])),
        ({"image": X, "label": Y}, ["x"], (1, [])),
        ({"image": X, "label": Y}, ["x", "rng"], (1, [])),
        ({"image": X, "label": Y, "mask": W, "weight": W}, ["x"], (1, [])),
        (
            {"tokens": X, "segments": X, "y": Y},
            ["tokens", "segments"],
            (0, ["segments", "tokens"]),
        ),
        ({"tokens": X, "y": Y}, ["tokens", "mask"], (0, ["tokens"])),
        ({"tokens": X, "mask": X, "y": Y}, ["tokens", "mask"], (0, ["mask", "tokens"])),
        ({"tokens": X, "mask": W, "y": Y}, ["tokens", "mask"], (0, ["tokens"])),
        ({"inputs": X, "targets": X}, ["inputs", "targets"], (0, ["inputs", "targets"])),
        ({"image": X}, ["x"], (1, [])),
    ],
)
def test_entries_reach_the_arguments(batch: Any, names: list[str], wanted: Any) -> None:
    assert taken(batch, names) == wanted


def test_the_values_are_passed_as_they_are() -> None:
    args, _ = model_inputs({"image": X, "label": Y}, ["x"])
    assert args[0] is X
    _, kwargs = model_inputs({"a": X, "b": W, "label": Y}, ["a", "b"])
    assert kwargs["a"] is X and kwargs["b"] is W


def test_a_missing_argument_names_the_keys_and_the_nearest() -> None:
    with pytest.raises(MissingKeyError) as caught:
        model_inputs({"token": X, "segments": X, "label": Y}, ["tokens", "segments"])
    assert (
        "'tokens' has no entry in the batch, whose keys are 'token', 'segments', 'label'"
        in str(caught.value)
    )
    assert "is 'token' meant?" in str(caught.value)


def test_an_argument_without_default_is_missed_when_it_is_said_to_be_required() -> None:
    batch = {"tokens": X, "label": Y}
    assert taken(batch, ["tokens", "segments"]) == (0, ["tokens"])
    with pytest.raises(MissingKeyError, match="'segments' has no entry"):
        model_inputs(batch, ["tokens", "segments"], ["tokens", "segments"])


def test_an_entry_left_over_is_refused_rather_than_dropped() -> None:
    with pytest.raises(LossError, match="'maks' of the batch is no argument") as caught:
        model_inputs({"tokens": X, "maks": X, "label": Y}, ["tokens", "mask"])
    assert "is 'mask' meant?" in str(caught.value)


@pytest.mark.parametrize("name", ["label", "labels", "target", "targets", "y"])
def test_every_name_of_a_target_is_found(name: str) -> None:
    assert target({"image": X, name: Y}) is Y


def test_the_target_of_a_tuple_is_its_second_part() -> None:
    assert target((X, Y)) is Y


@pytest.mark.parametrize(
    ("batch", "error", "found"),
    [
        ({"image": X, "lable": Y}, MissingKeyError, "is 'lable' meant as 'label'?"),
        ({"image": X, "digit": Y}, MissingKeyError, "its keys are 'image', 'digit'"),
        ({"image": X, "label": Y, "y": Y}, LossError, "has 2 targets: 'label', 'y'"),
        ((X, Y, W), LossError, "a tuple of 3 parts"),
        ((X,), MissingKeyError, "the batch holds inputs only, no target"),
        (X, MissingKeyError, "the batch holds inputs only, no target"),
    ],
)
def test_a_target_that_can_not_be_told_is_an_error(
    batch: Any, error: type[Exception], found: str
) -> None:
    with pytest.raises(error) as caught:
        target(batch)
    assert found in str(caught.value) and "def loss_fn(model, batch):" in str(caught.value)


def test_weights_of_examples_are_found_and_multiplied() -> None:
    mask = np.array([True, True, False, True])
    assert example_weights({"image": X, "weight": W}) is W
    assert example_weights({"image": X, "mask": mask}) is mask
    both = example_weights({"image": X, "weight": W, "mask": mask})
    assert both is not None and both.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert example_weights({"image": X, "mask": X}) is None
    assert example_weights((X, W)) is None


def test_everything_works_under_jit() -> None:
    @jax.jit
    def total(batch: Any) -> Any:
        args, kwargs = model_inputs(batch, ["x"])
        weights = example_weights(batch)
        assert weights is not None and not kwargs
        return jnp.sum(args[0][:, 0] * weights) + jnp.sum(target(batch))

    assert float(total({"image": X, "label": Y, "weight": W})) == 8.0
