"""How a training step is made: arguments."""

from __future__ import annotations

from typing import Any

import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, BatchError, FlaxtrainError
from flaxtrain.precision import DynamicScale, NoScale
from flaxtrain.train import StepOptions


def test_a_step_is_made_at_once_and_unscaled_by_default() -> None:
    assert StepOptions() == StepOptions(accumulate=1, loss_scale=NoScale())


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"accumulate": 0}, ArgumentError, "accumulate=0"),
        ({"accumulate": 2.0}, ArgumentTypeError, "accumulate=2.0"),
        ({"accumulate": True}, ArgumentTypeError, "accumulate=True"),
        ({"loss_scale": 2.0}, ArgumentTypeError, "loss_scale=2.0 is a float"),
        ({"loss_scale": DynamicScale}, ArgumentTypeError, "not a loss scale"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind, match=text):
        StepOptions(**arguments)


def test_rows_must_divide_into_microbatches() -> None:
    StepOptions(accumulate=4).check_rows(32)
    with pytest.raises(BatchError, match="30 rows do not divide into 4"):
        StepOptions(accumulate=4).check_rows(30)
