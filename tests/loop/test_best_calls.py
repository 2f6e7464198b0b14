"""What `steps_per_call="auto"` chooses from given times, and what a checkpoint says of it."""

from __future__ import annotations

import json
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain.errors import CheckpointError
from flaxtrain.loop.steps_per_call import ONE_STEP, CallForm, StepTimes, best_call_form
from tests.runs import refused

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
    call_form, said = best_call_form(seconds, nbytes, cadences, recipe(nn.Dense(2)))
    assert call_form.steps == steps and call_form.form == ("single" if steps == 1 else "loop")
    assert f"has chosen {steps}" in said


def test_few_steps_are_written_out() -> None:
    call_form, said = best_call_form(0.0005, 1000, [("log_every", 48)], recipe(Conv()))
    assert call_form == CallForm(8, "unrolled")
    assert said == (
        "steps_per_call='auto' has chosen 8, written out: a step takes 0.5 ms, "
        "a batch 1000 B, and 8 divides log_every 48"
    )


def test_one_slow_step_among_those_that_are_timed_does_not_count() -> None:
    times = StepTimes()
    assert [times.add(s) for s in (0.2, 0.001, 0.002, 0.001, 0.001)] == [False] * 4 + [True]
    assert times.seconds == 0.001


@pytest.mark.parametrize(
    ("seconds", "nbytes", "cadences", "why"),
    [
        (
            0.0005,
            1000,
            [("log_every", 50), ("Evaluate", 391)],
            "a step takes 0.5 ms, and no number from 2 to 100 divides log_every 50, Evaluate "
            "391; make these multiples of one number, or pass a number: a call then ends early "
            "at each of them",
        ),
        (0.004, 1000, [("log_every", 53)], "no number from 2 to 12 divides log_every 53"),
        (0.0005, 33 * MB, [("log_every", 50)], "a batch 33.0 MiB, and those of a call"),
        (0.006, 1000, [("log_every", 50)], "beside which a call costs next to nothing"),
    ],
)
def test_one_step_per_call_is_chosen_with_the_reason(
    seconds: float, nbytes: int, cadences: list[tuple[str, int]], why: str
) -> None:
    call_form, said = best_call_form(seconds, nbytes, cadences, recipe(nn.Dense(2)))
    assert call_form == ONE_STEP and why in said


@pytest.mark.parametrize(
    "call_form", [ONE_STEP, CallForm(1, "loop"), CallForm(8, "loop"), CallForm(8, "unrolled")]
)
def test_what_a_checkpoint_says_is_read(call_form: CallForm) -> None:
    meta = json.loads(json.dumps({"steps_per_call": call_form.as_meta()}))
    assert CallForm.read(meta, where="step 3") == call_form
    assert CallForm.read({}, where="step 3") is None


@pytest.mark.parametrize(
    "said",
    [
        8,
        "loop",
        [8, "loop"],
        {},
        {"steps": 8},
        {"steps": 8, "form": "loop", "more": 1},
        {"steps": "8", "form": "loop"},
        {"steps": 8.0, "form": "loop"},
        {"steps": True, "form": "single"},
        {"steps": 0, "form": "loop"},
        {"steps": -1, "form": "unrolled"},
        {"steps": 8, "form": "single"},
        {"steps": 8, "form": "rolled"},
        {"steps": 8, "form": ["loop"]},
    ],
)
def test_what_a_checkpoint_says_in_another_form_is_refused(said: Any) -> None:
    text = f"what the checkpoint says of steps_per_call can't be read: {said!r}"
    refused(
        lambda: CallForm.read({"steps_per_call": said}, where="step 3"), CheckpointError, text
    )
