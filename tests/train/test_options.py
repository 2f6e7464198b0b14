"""How a training step is made: arguments."""

from __future__ import annotations

from typing import Any

import pytest

from flaxtrain.errors import ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.precision import DynamicScale, FixedScale, NoScale, Precision
from flaxtrain.train import StepOptions


def test_a_step_is_made_at_once_and_unscaled_by_default() -> None:
    assert StepOptions() == StepOptions(loss_scale=NoScale())


def test_options_are_values_with_arrays_in_their_loss_scale_too() -> None:
    one, same = (StepOptions(DynamicScale(init=8.0), "f16") for _ in range(2))
    assert one == same and len({one, same, StepOptions(precision="f16")}) == 2


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"accumulate": 2}, ArgumentTypeError, r"pass it as OptSpec\(accumulate=...\)"),
        ({"loss_scal": 2.0}, ArgumentTypeError, "did you mean 'loss_scale'?"),
        ({"loss_scale": 2.0}, ArgumentTypeError, "loss_scale=2.0 is a float"),
        ({"loss_scale": DynamicScale}, ArgumentTypeError, "not a loss scale"),
        ({"precision": "bf61"}, UnknownNameError, "unknown precision 'bf61'"),
        ({"precision": None}, ArgumentTypeError, "not a policy"),
        ({"precision": Precision("f32", {"#bais": "c=f32"})}, UnknownNameError, "bais"),
        ({"precision": Precision("f32", {3: "c=f32"})}, ArgumentTypeError, "3 is an int"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind, match=text) as caught:
        StepOptions(**arguments)
    assert "Trainer" not in str(caught.value)


def test_float16_has_a_dynamic_loss_scale_by_default_and_says_so() -> None:
    for precision in ("f16", "p=f16", Precision("bf16", {"head": "c=f16"})):
        options = StepOptions(precision=precision)
        assert isinstance(options.loss_scale, DynamicScale) and len(options.notes) == 1
    for options in (StepOptions(precision="bf16"), StepOptions(FixedScale(2.0), "f16")):
        assert not isinstance(options.loss_scale, DynamicScale) and options.notes == ()
