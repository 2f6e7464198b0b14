"""Wrong schedules: refused where they are made, with what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    from_dict,
    join_schedules,
    linear_schedule,
    polynomial_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
)

NAN, INF = float("nan"), float("inf")
ONE = constant_schedule(1.0)

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (
        lambda: constant_schedule(NAN),
        ArgumentError,
        "value=nan is out of range\n"
        "  where: constant_schedule\n"
        "  fix:   pass a finite number in (-inf, inf)",
    ),
    (
        lambda: constant_schedule("0.1"),  # type: ignore[arg-type]
        ArgumentTypeError,
        "value='0.1' is a str, not a number\n"
        "  where: constant_schedule\n"
        "  fix:   pass a number for value",
    ),
    (
        lambda: linear_schedule(0.0, INF, 10),
        ArgumentError,
        "end_value=inf is out of range\n"
        "  where: polynomial_schedule\n"
        "  fix:   pass a finite number in (-inf, inf)",
    ),
    (
        lambda: linear_schedule(0.0, 1.0, -10),
        ArgumentError,
        "transition_steps=-10 is out of range\n"
        "  where: polynomial_schedule\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: linear_schedule(0.0, 1.0, 10, -1),
        ArgumentError,
        "transition_begin=-1 is out of range\n"
        "  where: polynomial_schedule\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: linear_schedule(0.0, 1.0, "ten"),
        ArgumentError,
        "'ten' is not a duration\n"
        "  where: polynomial_schedule(transition_steps='ten')\n"
        "  fix:   write it like '500' or '500st' (steps), '10ep' (epochs), '5%' (of the run), "
        "'1M ex' (examples)",
    ),
    (
        lambda: polynomial_schedule(1.0, 0.0, -0.5, 10),
        ArgumentError,
        "power=-0.5 is out of range\n"
        "  where: polynomial_schedule\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: cosine_decay_schedule(1.0, 0),
        ArgumentError,
        "decay_steps=0 is out of range\n"
        "  where: cosine_decay_schedule\n"
        "  fix:   pass a finite number in (0, inf)",
    ),
    (
        lambda: cosine_decay_schedule(1.0, True),
        ArgumentTypeError,
        "decay_steps=True is a bool, not a number\n"
        "  where: cosine_decay_schedule\n"
        "  fix:   pass a number for decay_steps",
    ),
    (
        lambda: cosine_decay_schedule(1.0, 10, exponent=-1.0),
        ArgumentError,
        "exponent=-1.0 is out of range\n"
        "  where: cosine_decay_schedule\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: warmup_constant_schedule(0.0, 1.0, -1),
        ArgumentError,
        "warmup_steps=-1 is out of range\n"
        "  where: warmup_constant_schedule\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: warmup_cosine_decay_schedule(0.0, 1.0, 10, 10),
        ArgumentError,
        "decay_steps=10 is not above warmup_steps=10\n"
        "  where: warmup_cosine_decay_schedule\n"
        "  fix:   pass the length of the whole schedule, warm-up included, as decay_steps",
    ),
    (
        lambda: warmup_cosine_decay_schedule(0.1, 0.0, 1, 10, end_value=0.2),
        ArgumentError,
        "peak_value=0 can't decay to end_value=0.2\n"
        "  where: warmup_cosine_decay_schedule\n"
        "  fix:   pass a peak_value that is not 0: the decay is a fraction of it",
    ),
    (
        lambda: join_schedules([], []),
        ArgumentError,
        "0 schedules, 0 boundaries\n"
        "  where: join_schedules\n"
        "  fix:   pass one boundary between neighbours: one fewer than schedules",
    ),
    (
        lambda: join_schedules([ONE, ONE, ONE], [5]),
        ArgumentError,
        "3 schedules, 1 boundaries\n"
        "  where: join_schedules\n"
        "  fix:   pass one boundary between neighbours: one fewer than schedules",
    ),
    (
        lambda: join_schedules([ONE, ONE, ONE], [9, 5]),
        ArgumentError,
        "boundaries=[9, 5] are not in order\n"
        "  where: join_schedules\n"
        "  fix:   pass them in ascending order: [5, 9]",
    ),
    (
        lambda: join_schedules([ONE, ONE], [-5]),
        ArgumentError,
        "boundaries=-5 is out of range\n"
        "  where: join_schedules\n"
        "  fix:   pass a finite number in [0, inf)",
    ),
    (
        lambda: join_schedules([ONE, 0.5], [5]),  # type: ignore[list-item]
        ArgumentTypeError,
        "schedules[1]=0.5 is not a schedule\n"
        "  where: join_schedules\n"
        "  fix:   pass schedules, or functions of the count (constant_schedule(x))",
    ),
    (
        lambda: from_dict({"schedule": "linear_schedul"}),
        UnknownNameError,
        "unknown schedule 'linear_schedul'\n"
        "  where: schedules.from_dict\n"
        "  fix:   did you mean 'linear_schedule'? Known: constant_schedule, "
        "cosine_decay_schedule, join_schedules, linear_schedule, polynomial_schedule, "
        "warmup_constant_schedule, warmup_cosine_decay_schedule",
    ),
    (
        lambda: from_dict({"schedule": "constant_schedule", "values": 1.0}),
        UnknownNameError,
        "unknown argument 'values'\n"
        "  where: constant_schedule\n"
        "  fix:   did you mean 'value'? Known: value",
    ),
    (
        lambda: from_dict({"schedule": "cosine_decay_schedule", "init_value": 1.0}),
        ArgumentError,
        "decay_steps missing\n"
        "  where: cosine_decay_schedule\n"
        "  fix:   add 'decay_steps': cosine_decay_schedule needs it",
    ),
    (
        lambda: from_dict({"init_value": 1.0}),
        ArgumentTypeError,
        "{'init_value': 1.0} is not a schedule written as data\n"
        "  where: schedules.from_dict\n"
        '  fix:   pass a mapping {"schedule": name, argument: value, ...}',
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_a_wrong_schedule_says_what_where_and_what_to_do(
    make: Callable[[], Any], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text


def test_a_warmup_of_no_steps_starts_at_the_peak() -> None:
    assert float(warmup_constant_schedule(0.0, 1.0, 0)(0)) == 1.0
    assert float(warmup_cosine_decay_schedule(0.0, 1.0, 0, 10)(0)) == 1.0


def test_a_line_of_no_steps_stays_where_it_starts() -> None:
    assert linear_schedule(0.25, 1.0, 0)(7) == 0.25
