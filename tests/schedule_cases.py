"""One row per schedule: how to make it, its closed form in NumPy float64, and three points.

Every row goes through all laws in `tests/schedules/test_laws.py`; a new schedule is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxtrain.schedules import (
    Schedule,
    constant_schedule,
    cooldown_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    exponential_decay,
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

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """One schedule and what is known about it.

    Attributes:
        name: for the test's name.
        ours: the schedule.
        closed_form: maps counts (float64 array) to values in float64, written from the formula.
        theirs: makes the same schedule from optax's module; what optax lacks is put together
            from what it has, or written out with jax.numpy.
        points: three (count, value) pairs worked out by hand.
        boundaries: the counts at which the formula changes.
    """

    name: str
    ours: Schedule
    closed_form: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[Any], Callable[[Any], Any]]
    points: tuple[tuple[int, float], tuple[int, float], tuple[int, float]]
    boundaries: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return self.name


def _line(count: np.ndarray, start: float, end: float, steps: float, power: float = 1) -> Any:
    return (start - end) * (1 - np.clip(count, 0, steps) / steps) ** power + end


def _cosine(count: np.ndarray, start: float, end: float, steps: float, power: float = 1) -> Any:
    half = (1 + np.cos(np.pi * np.clip(count, 0, steps) / steps)) / 2
    return (start - end) * half**power + end


def _exponential(count: np.ndarray, start: float, rate: float, steps: float) -> np.ndarray:
    return start * np.exp(np.log(rate) * np.maximum(count, 0) / steps)


def _through(count: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Lines from knot to knot."""
    return np.interp(count, [step for step, _ in knots], [value for _, value in knots])


def _restarts(count: np.ndarray, first: int, growth: int, decay: float) -> np.ndarray:
    """Cosines to zero, found by walking through the cycles."""
    result, begin, length, peak = np.zeros(count.shape), 0, first, 1.0
    while begin <= count.max():
        here = (begin <= count) & (count < begin + length)
        result[here] = peak * (1 + np.cos(np.pi * (count[here] - begin) / length)) / 2
        begin, length, peak = begin + length, length * growth, peak * decay
    return result


def _restarts_in_jax(first: int, growth: int, decay: float) -> Callable[[Any], Any]:
    def schedule(count: Any) -> Any:
        result, begin, length, peak = 0.0, 0, first, 1.0
        while begin < 2**31:
            part = peak * 0.5 * (1 + jnp.cos(jnp.pi * ((count - begin) / length)))
            result = jnp.where(count >= begin, part, result)
            begin, length, peak = begin + length, length * growth, peak * decay
        return result

    return schedule


CYCLES = (
    {"init_value": 0.0, "peak_value": 1.0, "decay_steps": 1000, "warmup_steps": 100},
    {"init_value": 0.2, "peak_value": 0.8, "decay_steps": 3000, "warmup_steps": 0},
    {
        "init_value": 0.1,
        "peak_value": 0.4,
        "decay_steps": 500,
        "warmup_steps": 50,
        "end_value": 0.1,
        "exponent": 2.0,
    },
)

CASES = (
    Case(
        "constant",
        constant_schedule(0.3),
        lambda c: np.full(c.shape, 0.3),
        lambda optax: optax.constant_schedule(0.3),
        ((0, 0.3), (17, 0.3), (10**9, 0.3)),
    ),
    Case(
        "linear",
        linear_schedule(0.1, 0.9, 4000, 500),
        lambda c: _line(c - 500, 0.1, 0.9, 4000),
        lambda optax: optax.linear_schedule(0.1, 0.9, 4000, 500),
        ((500, 0.1), (1500, 0.3), (4500, 0.9)),
        (500, 4500),
    ),
    Case(
        "linear_down_to_a_negative_value",
        linear_schedule(0.5, -0.5, 1000),
        lambda c: _line(c, 0.5, -0.5, 1000),
        lambda optax: optax.linear_schedule(0.5, -0.5, 1000),
        ((0, 0.5), (500, 0.0), (1000, -0.5)),
        (1000,),
    ),
    Case(
        "linear_without_a_transition",
        linear_schedule(0.5, 1.0, 0),
        lambda c: np.full(c.shape, 0.5),
        lambda optax: optax.linear_schedule(0.5, 1.0, 0),
        ((0, 0.5), (1, 0.5), (9, 0.5)),
    ),
    Case(
        "polynomial",
        polynomial_schedule(2.0, 1.0, 3, 6000, 100),
        lambda c: _line(c - 100, 2.0, 1.0, 6000, 3),
        lambda optax: optax.polynomial_schedule(2.0, 1.0, 3, 6000, 100),
        ((100, 2.0), (3100, 1.125), (6100, 1.0)),
        (100, 6100),
    ),
    Case(
        "polynomial_of_fractional_power",
        polynomial_schedule(1.0, 0.0, 1.5, 100),
        lambda c: _line(c, 1.0, 0.0, 100, 1.5),
        lambda optax: optax.polynomial_schedule(1.0, 0.0, 1.5, 100),
        ((0, 1.0), (75, 0.125), (100, 0.0)),
        (100,),
    ),
    Case(
        "cosine",
        cosine_decay_schedule(0.4, 9000),
        lambda c: _cosine(c, 0.4, 0.0, 9000),
        lambda optax: optax.cosine_decay_schedule(0.4, 9000),
        ((0, 0.4), (3000, 0.3), (9000, 0.0)),
        (9000,),
    ),
    Case(
        "cosine_with_alpha_and_exponent",
        cosine_decay_schedule(2.0, 900, 0.25, 2.0),
        lambda c: _cosine(c, 2.0, 0.5, 900, 2.0),
        lambda optax: optax.cosine_decay_schedule(2.0, 900, 0.25, 2.0),
        ((0, 2.0), (450, 0.875), (900, 0.5)),
        (900,),
    ),
    Case(
        "cosine_over_a_fraction_of_a_step",
        cosine_decay_schedule(1.0, 10.5),
        lambda c: _cosine(c, 1.0, 0.0, 10.5),
        lambda optax: optax.cosine_decay_schedule(1.0, 10.5),
        ((0, 1.0), (7, 0.25), (11, 0.0)),
        (10, 11),
    ),
    Case(
        "join",
        join_schedules(
            [constant_schedule(0.5), linear_schedule(1.0, 0.0, 200), constant_schedule(0.25)],
            [1000, 1100],
        ),
        lambda c: np.where(
            c < 1000, 0.5, np.where(c < 1100, _line(c - 1000, 1.0, 0.0, 200), 0.25)
        ),
        lambda optax: optax.join_schedules(
            [
                optax.constant_schedule(0.5),
                optax.linear_schedule(1.0, 0.0, 200),
                optax.constant_schedule(0.25),
            ],
            [1000, 1100],
        ),
        ((999, 0.5), (1050, 0.75), (1100, 0.25)),
        (1000, 1100),
    ),
    Case(
        "join_that_skips_a_schedule",
        join_schedules([constant_schedule(v) for v in (1.0, 2.0, 3.0)], [5, 5]),
        lambda c: np.where(c < 5, 1.0, 3.0),
        lambda optax: optax.join_schedules(
            [optax.constant_schedule(v) for v in (1.0, 2.0, 3.0)], [5, 5]
        ),
        ((4, 1.0), (5, 3.0), (6, 3.0)),
        (5,),
    ),
    Case(
        "warmup_constant",
        warmup_constant_schedule(0.0, 0.8, 400),
        lambda c: _line(c, 0.0, 0.8, 400),
        lambda optax: optax.warmup_constant_schedule(0.0, 0.8, 400),
        ((0, 0.0), (100, 0.2), (400, 0.8)),
        (400,),
    ),
    Case(
        "warmup_cosine_decay",
        warmup_cosine_decay_schedule(0.01, 0.5, 500, 8500, 0.1, 1.5),
        lambda c: np.where(
            c < 500, _line(c, 0.01, 0.5, 500), _cosine(c - 500, 0.5, 0.1, 8000, 1.5)
        ),
        lambda optax: optax.warmup_cosine_decay_schedule(0.01, 0.5, 500, 8500, 0.1, 1.5),
        ((0, 0.01), (500, 0.5), (8500, 0.1)),
        (500, 8500),
    ),
    Case(
        "warmup_cosine_decay_without_warmup",
        warmup_cosine_decay_schedule(0.7, 0.5, 0, 900),
        lambda c: _cosine(c, 0.5, 0.0, 900),
        lambda optax: optax.warmup_cosine_decay_schedule(0.7, 0.5, 0, 900),
        ((0, 0.5), (450, 0.25), (900, 0.0)),
        (900,),
    ),
    Case(
        "warmup_cosine_decay_of_zero",
        warmup_cosine_decay_schedule(0.0, 0.0, 10, 100),
        lambda c: np.zeros(c.shape),
        lambda optax: optax.warmup_cosine_decay_schedule(0.0, 0.0, 10, 100),
        ((0, 0.0), (10, 0.0), (100, 0.0)),
        (10, 100),
    ),
    Case(
        "exponential",
        exponential_decay(0.5, 1000, 0.25, 200),
        lambda c: _exponential(c - 200, 0.5, 0.25, 1000),
        lambda optax: optax.exponential_decay(0.5, 1000, 0.25, 200),
        ((200, 0.5), (700, 0.25), (2200, 0.03125)),
        (200,),
    ),
    Case(
        "exponential_down_to_a_limit",
        exponential_decay(1.0, 500, 0.5, end_value=0.1),
        lambda c: np.maximum(_exponential(c, 1.0, 0.5, 500), 0.1),
        lambda optax: optax.exponential_decay(1.0, 500, 0.5, end_value=0.1),
        ((0, 1.0), (1000, 0.25), (5000, 0.1)),
        (1661,),
    ),
    Case(
        "exponential_growth_up_to_a_limit",
        exponential_decay(0.125, 300, 2.0, end_value=0.8),
        lambda c: np.where(
            c < 10**4, np.minimum(_exponential(np.minimum(c, 10**4), 0.125, 2.0, 300), 0.8), 0.8
        ),
        lambda optax: optax.exponential_decay(0.125, 300, 2.0, end_value=0.8),
        ((0, 0.125), (600, 0.5), (1200, 0.8)),
        (804,),
    ),
    Case(
        "exponential_in_stairs",
        exponential_decay(1.0, 64, 0.5, 10, staircase=True),
        lambda c: np.exp2(-np.floor(np.maximum(c - 10, 0) / 64)),
        lambda optax: optax.exponential_decay(1.0, 64, 0.5, 10, staircase=True),
        ((73, 1.0), (74, 0.5), (138, 0.25)),
        (10, 74, 138, 650),
    ),
    Case(
        "exponential_of_rate_zero",
        exponential_decay(0.3, 10, 0.0),
        lambda c: np.full(c.shape, 0.3),
        lambda optax: optax.exponential_decay(0.3, 10, 0.0),
        ((0, 0.3), (10, 0.3), (99, 0.3)),
    ),
    Case(
        "piecewise_constant",
        piecewise_constant_schedule(0.8, {6000: 0.1, 1000: 0.5, 2000: 3.0}),
        lambda c: (
            0.8
            * np.where(c < 1000, 1, 0.5)
            * np.where(c < 2000, 1, 3.0)
            * np.where(c < 6000, 1, 0.1)
        ),
        lambda optax: optax.piecewise_constant_schedule(0.8, {6000: 0.1, 1000: 0.5, 2000: 3.0}),
        ((999, 0.8), (1000, 0.4), (6000, 0.12)),
        (1000, 2000, 6000),
    ),
    Case(
        "piecewise_constant_without_boundaries",
        piecewise_constant_schedule(0.8),
        lambda c: np.full(c.shape, 0.8),
        lambda optax: optax.piecewise_constant_schedule(0.8),
        ((0, 0.8), (10, 0.8), (99, 0.8)),
    ),
    Case(
        "piecewise_linear",
        piecewise_interpolate_schedule("linear", 1.0, {0: 0.5, 4000: 2.0, 5000: 0.0}),
        lambda c: _through(c, [(0, 0.5), (4000, 1.0), (5000, 0.0)]),
        lambda optax: optax.piecewise_interpolate_schedule(
            "linear", 1.0, {0: 0.5, 4000: 2.0, 5000: 0.0}
        ),
        ((0, 0.5), (2000, 0.75), (5000, 0.0)),
        (4000, 5000),
    ),
    Case(
        "piecewise_cosine",
        piecewise_interpolate_schedule("cosine", 0.4, {600: 2.0, 9000: 0.25}),
        lambda c: np.where(
            c < 600, _cosine(c, 0.4, 0.8, 600), _cosine(c - 600, 0.8, 0.2, 8400)
        ),
        lambda optax: optax.piecewise_interpolate_schedule(
            "cosine", 0.4, {600: 2.0, 9000: 0.25}
        ),
        ((0, 0.4), (300, 0.6), (9000, 0.2)),
        (600, 9000),
    ),
    Case(
        "linear_onecycle",
        linear_onecycle_schedule(5000, 0.5),
        lambda c: _through(c, [(0, 0.02), (1500, 0.5), (4250, 0.02), (5000, 2e-6)]),
        lambda optax: optax.linear_onecycle_schedule(5000, 0.5),
        ((0, 0.02), (1500, 0.5), (4250, 0.02)),
        (1500, 4250, 5000),
    ),
    Case(
        "linear_onecycle_of_few_steps",
        linear_onecycle_schedule(7, 1.0, 0.25, 0.5, 4.0, 2.0),
        lambda c: _through(c, [(0, 0.25), (1, 1.0), (3, 0.25), (7, 0.125)]),
        lambda optax: optax.linear_onecycle_schedule(7, 1.0, 0.25, 0.5, 4.0, 2.0),
        ((1, 1.0), (2, 0.625), (7, 0.125)),
        (1, 3, 7),
    ),
    Case(
        "cosine_onecycle",
        cosine_onecycle_schedule(8000, 0.5, 0.25, 10.0, 5.0),
        lambda c: np.where(
            c < 2000, _cosine(c, 0.05, 0.5, 2000), _cosine(c - 2000, 0.5, 0.01, 6000)
        ),
        lambda optax: optax.cosine_onecycle_schedule(8000, 0.5, 0.25, 10.0, 5.0),
        ((0, 0.05), (1000, 0.275), (8000, 0.01)),
        (2000, 8000),
    ),
    Case(
        "cosine_onecycle_without_a_rise",
        cosine_onecycle_schedule(100, 0.5, 0.0),
        lambda c: _cosine(c, 0.5, 2e-6, 100),
        lambda optax: optax.cosine_onecycle_schedule(100, 0.5, 0.0),
        ((0, 0.5), (50, 0.250001), (100, 2e-6)),
        (100,),
    ),
    Case(
        "warmup_exponential_decay",
        warmup_exponential_decay_schedule(0.1, 0.8, 400, 1000, 0.5, 100, end_value=0.05),
        lambda c: np.where(
            c < 400,
            _line(c, 0.1, 0.8, 400),
            np.maximum(_exponential(c - 500, 0.8, 0.5, 1000), 0.05),
        ),
        lambda optax: optax.warmup_exponential_decay_schedule(
            0.1, 0.8, 400, 1000, 0.5, 100, end_value=0.05
        ),
        ((0, 0.1), (500, 0.8), (1500, 0.4)),
        (400, 500, 4500),
    ),
    Case(
        "sgdr",
        sgdr_schedule(CYCLES),
        lambda c: np.select(
            [c < 100, c < 1000, c < 4000, c < 4050],
            [
                _line(c, 0.0, 1.0, 100),
                _cosine(c - 100, 1.0, 0.0, 900),
                _cosine(c - 1000, 0.8, 0.0, 3000),
                _line(c - 4000, 0.1, 0.4, 50),
            ],
            _cosine(c - 4050, 0.4, 0.1, 450, 2.0),
        ),
        lambda optax: optax.sgdr_schedule(CYCLES),
        ((550, 0.5), (1000, 0.8), (4500, 0.1)),
        (100, 1000, 4000, 4050, 4500),
    ),
    Case(
        "cosine_restarts_of_growing_length",
        cosine_restarts_schedule(1.0, 300, t_mult=2.0, peak_decay=0.5),
        lambda c: _restarts(c, 300, 2, 0.5),
        lambda optax: _restarts_in_jax(300, 2, 0.5),
        ((150, 0.5), (300, 0.5), (900, 0.25)),
        (300, 900, 2100, 4500),
    ),
    Case(
        "cosine_restarts_of_one_length",
        cosine_restarts_schedule(2.0, 600, 0.25),
        lambda c: 0.5 + 0.75 * (1 + np.cos(np.pi * (c % 600) / 600)),
        lambda optax: lambda c: 0.5 + 0.75 * (1 + jnp.cos(jnp.pi * (c % 600) / 600)),
        ((0, 2.0), (300, 1.25), (6000, 2.0)),
        (600, 6000),
    ),
    Case(
        "cooldown",
        cooldown_schedule(0.8, 6400, "1-sqrt", 0.2),
        lambda c: 0.8 - 0.6 * np.sqrt(np.minimum(c, 6400) / 6400),
        lambda optax: lambda c: 0.8 - 0.6 * jnp.sqrt(jnp.minimum(c, 6400) / 6400),
        ((0, 0.8), (1600, 0.5), (6400, 0.2)),
        (6400,),
    ),
    Case(
        "wsd_with_a_linear_tail",
        wsd_schedule(0.5, 500, 4500, 3000),
        lambda c: _through(c, [(0, 0.0), (500, 0.5), (5000, 0.5), (8000, 0.0)]),
        lambda optax: optax.join_schedules(
            [
                optax.linear_schedule(0.0, 0.5, 500),
                optax.constant_schedule(0.5),
                optax.linear_schedule(0.5, 0.0, 3000),
            ],
            [500, 5000],
        ),
        ((250, 0.25), (5000, 0.5), (6500, 0.25)),
        (500, 5000, 8000),
    ),
    Case(
        "wsd_with_a_cosine_tail",
        wsd_schedule(1.0, 0, 100, 800, "cosine", end_value=0.5),
        lambda c: _cosine(c - 100, 1.0, 0.5, 800),
        lambda optax: optax.join_schedules(
            [optax.constant_schedule(1.0), optax.cosine_decay_schedule(1.0, 800, 0.5)], [100]
        ),
        ((100, 1.0), (500, 0.75), (900, 0.5)),
        (100, 900),
    ),
    Case(
        "wsd_with_a_tail_of_one_minus_the_root",
        wsd_schedule(1.0, 10, 0, 1600, "1-sqrt", init_value=0.5),
        lambda c: np.where(
            c < 10, _line(c, 0.5, 1.0, 10), 1 - np.sqrt(np.clip(c - 10, 0, 1600) / 1600)
        ),
        lambda optax: optax.join_schedules(
            [
                optax.linear_schedule(0.5, 1.0, 10),
                lambda c: 1 - jnp.sqrt(jnp.clip(c, 0, 1600) / 1600),
            ],
            [10],
        ),
        ((0, 0.5), (410, 0.5), (910, 0.25)),
        (10, 1610),
    ),
    Case(
        "inverse_sqrt_of_the_transformer",
        inverse_sqrt_schedule(0.8, 400),
        lambda c: 0.8 * np.minimum(c / 400, np.sqrt(400 / np.maximum(c, 1))),
        lambda optax: lambda c: 0.8 * jnp.minimum(c / 400, jnp.sqrt(400 / jnp.maximum(c, 1))),
        ((100, 0.2), (400, 0.8), (6400, 0.2)),
        (400,),
    ),
    Case(
        "inverse_sqrt_of_t5",
        inverse_sqrt_schedule(0.01, 10_000, init_value=0.01),
        lambda c: 1 / np.sqrt(np.maximum(c, 10_000)),
        lambda optax: lambda c: 1 / jnp.sqrt(jnp.maximum(c, 10_000) * 1.0),
        ((0, 0.01), (10_000, 0.01), (40_000, 0.005)),
        (10_000, 40_000),
    ),
    Case(
        "inverse_sqrt_with_timescale_and_cooldown",
        inverse_sqrt_schedule(1.0, 500, 1000, cooldown_steps=2000, total_steps=9000),
        lambda c: (
            np.minimum(c / 500, 1)
            * np.sqrt(1000 / (1000 + np.maximum(c - 500, 0)))
            * np.clip((9000 - c) / 2000, 0, 1)
        ),
        lambda optax: (
            lambda c: (
                jnp.minimum(c / 500, 1)
                * jnp.sqrt(1000 / (1000.0 + jnp.maximum(c - 500, 0)))
                * jnp.clip((9000 - c) / 2000, 0, 1)
            )
        ),
        ((250, 0.5), (3500, 0.5), (9000, 0.0)),
        (500, 7000, 9000),
    ),
)
