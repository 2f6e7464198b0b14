"""Wrong schedules: refused where they are made, with what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.schedules import (
    FACTORIES,
    constant_schedule,
    cooldown_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    exponential_decay,
    from_dict,
    inverse_sqrt_schedule,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    wsd_schedule,
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
        "  fix:   did you mean 'linear_schedule'? Known: " + ", ".join(sorted(FACTORIES)),
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


MISSPELT = {
    "constant_schedule": ("valu", "value"),
    "cooldown_schedule": ("tails", "tail"),
    "cosine_decay_schedule": ("decaysteps", "decay_steps"),
    "cosine_onecycle_schedule": ("pct_stat", "pct_start"),
    "cosine_restarts_schedule": ("t_mul", "t_mult"),
    "exponential_decay": ("decay_rat", "decay_rate"),
    "inverse_sqrt_schedule": ("time_scale", "timescale"),
    "join_schedules": ("boundary", "boundaries"),
    "linear_onecycle_schedule": ("pct_finl", "pct_final"),
    "linear_schedule": ("end_val", "end_value"),
    "piecewise_constant_schedule": ("boundaries_and_scale", "boundaries_and_scales"),
    "piecewise_interpolate_schedule": ("interpolation_type", "interpolate_type"),
    "polynomial_schedule": ("powr", "power"),
    "sgdr_schedule": ("cosine_kwarg", "cosine_kwargs"),
    "warmup_constant_schedule": ("warmup_step", "warmup_steps"),
    "warmup_cosine_decay_schedule": ("warm_up_steps", "warmup_steps"),
    "warmup_exponential_decay_schedule": ("stair_case", "staircase"),
    "wsd_schedule": ("stable_step", "stable_steps"),
}
CYCLE = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 10}

# What is asked of the rest, by the first line of the message.
RANGES: list[tuple[Callable[[], Any], str]] = [
    (lambda: exponential_decay(NAN, 10, 0.5), "init_value=nan is out of range"),
    (lambda: exponential_decay(1.0, -10, 0.5), "transition_steps=-10 is out of range"),
    (lambda: exponential_decay(1.0, 10, -0.5), "decay_rate=-0.5 is out of range"),
    (lambda: exponential_decay(1.0, 10, 0.5, -1), "transition_begin=-1 is out of range"),
    (lambda: exponential_decay(1.0, 10, 0.5, 0, 1), "staircase=1 is an int, not True or False"),
    (lambda: exponential_decay(1.0, 10, 0.5, end_value=INF), "end_value=inf is out of range"),
    (
        lambda: warmup_exponential_decay_schedule(0.0, 1.0, -1, 10, 0.5),
        "warmup_steps=-1 is out of range",
    ),
    (
        lambda: warmup_exponential_decay_schedule(0.0, 1.0, 1, 10, NAN),
        "decay_rate=nan is out of range",
    ),
    (lambda: piecewise_constant_schedule(INF), "init_value=inf is out of range"),
    (
        lambda: piecewise_constant_schedule(1.0, {10: -0.5}),
        "boundaries_and_scales[10]=-0.5 is out of range",
    ),
    (
        lambda: piecewise_constant_schedule(1.0, {-10: 0.5}),
        "boundaries_and_scales=-10 is out of range",
    ),
    (
        lambda: piecewise_constant_schedule(1.0, {"ten": 0.5}),
        "'ten' is not a duration",
    ),
    (
        lambda: piecewise_constant_schedule(1.0, {"10": 0.5, 10: 0.1}),
        "step 10 is there twice",
    ),
    (
        lambda: piecewise_constant_schedule(1.0, [10, 20]),
        "boundaries_and_scales=(10, 20) is a tuple, not a mapping",
    ),
    (
        lambda: piecewise_interpolate_schedule("cubic", 1.0, {10: 0.5}),
        "unknown interpolate_type 'cubic'",
    ),
    (
        lambda: piecewise_interpolate_schedule("linear", 1.0, {10: NAN}),
        "boundaries_and_scales[10]=nan is out of range",
    ),
    (lambda: linear_onecycle_schedule(0, 1.0), "transition_steps=0 is out of range"),
    (lambda: linear_onecycle_schedule(10, NAN), "peak_value=nan is out of range"),
    (lambda: linear_onecycle_schedule(10, 1.0, 30), "pct_start=30 is out of range"),
    (lambda: linear_onecycle_schedule(10, 1.0, 0.3, 85), "pct_final=85 is out of range"),
    (
        lambda: linear_onecycle_schedule(10, 1.0, 0.9, 0.3),
        "phases don't end one after the other, but at [9, 3, 10]",
    ),
    (
        lambda: linear_onecycle_schedule(1, 1.0),
        "phases don't end one after the other, but at [0, 0, 1]",
    ),
    (lambda: linear_onecycle_schedule(10, 1.0, div_factor=0), "div_factor=0 is out of range"),
    (lambda: cosine_onecycle_schedule(-5, 1.0), "transition_steps=-5 is out of range"),
    (
        lambda: cosine_onecycle_schedule(10, 1.0, final_div_factor=-1.0),
        "final_div_factor=-1.0 is out of range",
    ),
    (
        lambda: cosine_onecycle_schedule(10, 1.0, 1.0),
        "phases don't end one after the other, but at [10, 10]",
    ),
    (lambda: sgdr_schedule([]), "no cycles"),
    (lambda: sgdr_schedule([3]), "cosine_kwargs[0]=3 is not a mapping of arguments"),
    (
        lambda: sgdr_schedule([{**CYCLE, "decay_steps": 2}]),
        "decay_steps=2 is not above warmup_steps=2",
    ),
    (lambda: cosine_restarts_schedule(1.0, 0), "decay_steps=0 is out of range"),
    (lambda: cosine_restarts_schedule(1.0, 2.5), "decay_steps=2.5 is not a whole number"),
    (lambda: cosine_restarts_schedule(1.0, 5, t_mult=0.5), "t_mult=0.5 is out of range"),
    (lambda: cosine_restarts_schedule(1.0, 5, peak_decay=0), "peak_decay=0 is out of range"),
    (lambda: cosine_restarts_schedule(1.0, 5, peak_decay=2), "peak_decay=2 is out of range"),
    (
        lambda: cosine_restarts_schedule(1.0, 5, t_mult=1.0001),
        "t_mult=1.0001 is so near to 1 that there are too many cycles",
    ),
    (lambda: cooldown_schedule(1.0, 0), "decay_steps=0 is out of range"),
    (lambda: cooldown_schedule(1.0, 5, "sqrt"), "unknown tail 'sqrt'"),
    (lambda: wsd_schedule(NAN, 1, 1, 1), "peak_value=nan is out of range"),
    (lambda: wsd_schedule(1.0, -1, 1, 1), "warmup_steps=-1 is out of range"),
    (lambda: wsd_schedule(1.0, 1, -1, 1), "stable_steps=-1 is out of range"),
    (lambda: wsd_schedule(1.0, 1, 1, 0), "decay_steps=0 is out of range"),
    (lambda: wsd_schedule(1.0, 1, 1, 1, "1-sqr"), "unknown tail '1-sqr'"),
    (lambda: wsd_schedule(1.0, 1, 1, 1, init_value=INF), "init_value=inf is out of range"),
    (lambda: inverse_sqrt_schedule(INF, 5), "peak_value=inf is out of range"),
    (lambda: inverse_sqrt_schedule(1.0, -5), "warmup_steps=-5 is out of range"),
    (lambda: inverse_sqrt_schedule(1.0, 5, 0), "timescale=0 is out of range"),
    (
        lambda: inverse_sqrt_schedule(1.0, 0),
        "no timescale: neither timescale nor warmup_steps is above 0",
    ),
    (
        lambda: inverse_sqrt_schedule(1.0, 5, cooldown_steps="5%"),
        "cooldown_steps='5%' without total_steps",
    ),
    (
        lambda: inverse_sqrt_schedule(1.0, 5, cooldown_steps=6, total_steps=10),
        "warmup_steps=5 and cooldown_steps=6 exceed total_steps=10",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("make", "text"), RANGES)
def test_an_argument_out_of_range_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(FlaxtrainError) as caught:
        make()
    assert str(caught.value).splitlines()[0] == text


@pytest.mark.parametrize(("name", "arguments"), MISSPELT.items())
def test_a_misspelt_argument_is_answered_with_the_nearest(
    name: str, arguments: tuple[str, str]
) -> None:
    wrong, meant = arguments
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'") as caught:
        FACTORIES[name](**{wrong: 1})
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert f"where: {name}" in str(caught.value)


def test_every_factory_answers_a_misspelt_argument() -> None:
    assert set(MISSPELT) == set(FACTORIES)


def test_a_misspelt_argument_of_a_cycle_is_answered() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'decay_steps'"):
        sgdr_schedule([{**CYCLE, "decay_step": 10}])


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
