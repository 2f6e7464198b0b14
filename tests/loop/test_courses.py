"""How learning rates go, found from their values."""

from __future__ import annotations

from typing import Any

import pytest

from flaxtrain import schedules
from flaxtrain.loop.courses import course_of

JOINED = schedules.join_schedules(
    [schedules.linear_schedule(0.0, 1.0, 10), schedules.cosine_decay_schedule(1.0, 50)], [10]
)
WSD = schedules.wsd_schedule(0.1, 10, 60, 30)
STEPS = schedules.piecewise_constant_schedule(0.1, {60: 0.1, 80: 0.1})

# schedule, steps of the run; peak at, rests from, fades, end.
CASES = {
    "a number": (0.1, 100, 0, 0, False, None),
    "a constant": (schedules.constant_schedule(0.1), 100, 0, 0, False, 0),
    "the length of the run": (
        schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 5, 100),
        *(100, 5, 99, True, 100),
    ),
    "shorter": (
        schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000),
        *(3000, 50, 1000, True, 1000),
    ),
    "longer": (
        schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000),
        *(300, 50, 299, True, 1000),
    ),
    "a warm-up": (schedules.warmup_constant_schedule(0.0, 1.0, 50), 300, 50, 50, False, 50),
    "jumps": (STEPS, 100, 0, 80, False, 80),
    "warm-up, plateau, tail": (WSD, 200, 10, 100, True, 100),
    "one after the other": (JOINED, 100, 10, 60, True, 60),
    "to a value above zero": (
        schedules.linear_schedule(0.1, 0.01, 50),
        *(100, 0, 50, True, 50),
    ),
    "without an end": (
        schedules.exponential_decay(0.1, 100, 0.5),
        *(100, 0, 99, True, None),
    ),
    "cycles": (schedules.cosine_restarts_schedule(0.1, 30), 100, 0, 99, True, None),
    "a function": (lambda count: 0.1 * max(0.0, 1 - count / 50), 100, 0, 50, True, None),
    "a very long run": (
        schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 5000, 1_000_000),
        *(10_000_000, 5000, 1_000_000, True, 1_000_000),
    ),
    "a single update": (schedules.linear_schedule(1.0, 0.0, 4), 1, 0, 0, False, 4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_course_is_that_of_the_values(case: tuple[Any, ...]) -> None:
    rate, steps, peak_at, rests_from, fades, end = case
    found = course_of(rate, steps)
    assert found.rests_from == rests_from
    assert found.end == end
    if rests_from < steps - 1:  # else it is moving to the last update
        assert found.fades is fades
    # The top of a cosine is flat: float32 has the same value for a while.
    assert found.peak_at == pytest.approx(peak_at, rel=0.01)


def test_values_are_those_at_the_first_and_last_update() -> None:
    found = course_of(schedules.linear_schedule(1.0, 0.0, 10), steps=5)
    assert (found.first, found.peak, found.end_value) == (1.0, 1.0, 0.0)
    assert found.last == pytest.approx(0.6, abs=1e-6)  # float32


def test_a_function_is_not_asked_about_the_time_after_the_run() -> None:
    def rate(count: Any) -> float:
        assert count < 40
        return 1.0 / (1 + count)

    assert course_of(rate, 40).end is None
