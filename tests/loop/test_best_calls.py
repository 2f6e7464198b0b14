"""What `steps_per_call="auto"` chooses, from times that are given."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.loop.steps_per_call import Calls, StepTimes, best_calls

MB = 2**20


class Conv(nn.Module):
    """A convolution."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(nn.Conv(1, (3,))(x[..., None]).reshape(x.shape[0], -1))


def recipe(module: nn.Module) -> ft.Recipe:
    batch = {"x": np.ones((4, 3), "float32"), "label": np.zeros(4, "int32")}
    return ft.make_recipe(module, ft.OptSpec("sgd", 0.1), batch)


@pytest.mark.parametrize(
    ("seconds", "nbytes", "periods", "steps"),
    [
        (0.0005, 1000, (50,), 50),  # 25 ms
        (0.0005, 1000, (500, 200), 100),  # 50 ms, divides both
        (0.002, 1000, (50,), 25),  # 50 ms
        (0.004, 1000, (50,), 10),  # 40 ms; 25 steps would be 100 ms
        (0.006, 1000, (50,), 1),  # a call is next to nothing beside such a step
        (0.0005, 8 * MB, (50,), 5),  # 8 batches in 64 MB, and 8 does not divide 50
        (0.0005, 65 * MB, (50,), 1),
        (0.0005, 1000, (50, 391), 1),  # nothing else divides both
    ],
)
def test_the_largest_common_divisor_that_fits(
    seconds: float, nbytes: int, periods: tuple[int, ...], steps: int
) -> None:
    cadences = [(f"hook {index}", period) for index, period in enumerate(periods)]
    calls, said = best_calls(seconds, nbytes, cadences, recipe(nn.Dense(2)))
    assert calls.steps == steps and calls.form == ("single" if steps == 1 else "loop")
    assert f"has chosen {steps}" in said


def test_few_steps_are_written_out() -> None:
    calls, said = best_calls(0.0005, 1000, [("log_every", 48)], recipe(Conv()))
    assert calls == Calls(8, "unrolled")
    assert said == (
        "steps_per_call='auto' has chosen 8, written out: a step takes 0.5 ms, "
        "a batch 1000 B, and 8 divides log_every 48"
    )


def test_one_slow_step_among_those_that_are_timed_does_not_count() -> None:
    times = StepTimes()
    assert [times.add(s) for s in (0.2, 0.001, 0.002, 0.001, 0.001)] == [False] * 4 + [True]
    assert times.seconds == 0.001
