"""One row per schedule: how to make it, its closed form in NumPy float64, and three points.

Every row goes through all laws in `tests/schedules/test_laws.py`; a new schedule is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxtrain.schedules import (
    Schedule,
    constant_schedule,
    cosine_decay_schedule,
    join_schedules,
    linear_schedule,
    polynomial_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
)

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """One schedule and what is known about it.

    Attributes:
        name: for the test's name.
        ours: the schedule.
        closed_form: maps counts (float64 array) to values in float64, written from the formula.
        theirs: makes the same schedule from optax's module.
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
)
