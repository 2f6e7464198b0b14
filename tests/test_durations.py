"""Durations: what each text means, how it is rounded, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxtrain.durations import Horizon, parse, to_batches, to_steps
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError

HORIZON = Horizon(batches=1000, batches_per_epoch=45, batch_size=128)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (500, 500),
        (0, 0),
        (np.int64(7), 7),
        ("500", 500),
        ("500st", 500),
        (" 500 st ", 500),
        ("2k", 2000),
        ("1.5k st", 1500),
        ("1e3", 1000),
        ("10ep", 450),
        ("0.5ep", 23),  # 22.5, halves up
        ("0.1 ep", 5),  # 4.5
        ("1.5ep", 68),  # 67.5
        ("5%", 50),
        ("100%", 1000),
        ("150 %", 1500),
        ("0%", 0),
        ("0.15%", 2),  # 1.5
        ("0.14%", 1),  # 1.4
        ("0.001%", 1),  # a positive duration is at least one step
        ("512 ex", 4),
        ("512ex", 4),
        ("50k ex", 391),  # 390.625
        ("1M ex", 7813),  # 7812.5
        ("1B ex", 7812500),
        ("1 ex", 1),
    ],
)
def test_each_text_means_so_many_steps(duration: int | str, steps: int) -> None:
    assert to_steps(duration, HORIZON) == steps


def test_steps_need_no_horizon() -> None:
    assert to_steps("3k", Horizon()) == 3000
    assert not parse("3k").is_relative
    assert parse("3%").is_relative


@given(st.integers(0, 10**9), st.integers(0, 10**6 - 1), st.integers(1, 10**9))
def test_percentages_are_exact_and_rounded_half_up(
    whole: int, decimals: int, total: int
) -> None:
    percent = Fraction(whole) + Fraction(decimals, 10**6)
    steps = to_steps(f"{whole}.{decimals:06d}%", Horizon(batches=total))
    exact = percent * total / 100
    if exact == 0:
        assert steps == 0
    else:
        assert steps >= 1
        assert -Fraction(1, 2) < steps - exact <= Fraction(1, 2) or (steps == 1 and exact < 1)


@pytest.mark.parametrize(
    ("duration", "missing", "field"),
    [
        ("10ep", "the number of batches per epoch is not known yet", "batches_per_epoch="),
        ("5%", "the number of batches in the run is not known yet", "batches="),
        ("1M ex", "the batch size is not known yet", "batch_size="),
    ],
)
@pytest.mark.parametrize(("convert", "counted"), [(to_steps, "steps"), (to_batches, "batches")])
def test_a_missing_horizon_is_named(
    duration: str, missing: str, field: str, convert: Any, counted: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        convert(duration, Horizon(), where="an argument")
    assert str(caught.value) == (
        f"{missing}: {duration!r} can't be turned into {counted}\n"
        f"  where: an argument\n"
        f"  fix:   give the duration in {counted}, or a horizon with {field}"
    )


@pytest.mark.parametrize(
    ("duration", "error", "found"),
    [
        ("", ArgumentError, "'' is not a duration"),
        ("ten", ArgumentError, "'ten' is not a duration"),
        ("10 epochs", ArgumentError, "'10 epochs' is not a duration"),
        ("1m ex", ArgumentError, "'1m ex' is not a duration"),
        ("nan%", ArgumentError, "'nan%' is not a duration"),
        ("inf", ArgumentError, "'inf' is not a duration"),
        ("1e999999999", ArgumentError, "'1e999999999' is not a duration"),
        ("-5%", ArgumentError, "'-5%' is negative"),
        ("-5", ArgumentError, "'-5' is negative"),
        (-5, ArgumentError, "duration -5 is negative"),
        ("500.5", ArgumentError, "'500.5' is not a whole number of steps"),
        ("1k ep", ArgumentError, "'1k ep' is not a duration"),
        ("1k%", ArgumentError, "'1k%' is not a duration"),
        (True, ArgumentTypeError, "True is a bool, not a duration"),
        (10.0, ArgumentTypeError, "10.0 is a float, not a duration"),
        (float("nan"), ArgumentTypeError, "nan is a float, not a duration"),
        (None, ArgumentTypeError, "None is a NoneType, not a duration"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_not_a_duration_is_refused(duration: Any, error: type, found: str) -> None:
    with pytest.raises(error) as caught:
        to_steps(duration, HORIZON, where="steps")
    assert isinstance(caught.value, FlaxtrainError)
    assert caught.value.found == found
    assert caught.value.where == "steps"
    assert caught.value.fix


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
@pytest.mark.usefixtures("unchecked_types")
def test_a_horizon_holds_positive_integers(value: Any) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match="batches"):
        Horizon(batches=value)


def test_a_loop_counts_batches_and_a_spec_the_updates_that_they_make() -> None:
    horizon = Horizon(batches=100, batches_per_epoch=20, batch_size=8, batches_per_update=4)
    texts = (12, "12", "1ep", "30%", "320 ex")
    assert [to_batches(text, horizon) for text in texts] == [12, 12, 20, 30, 40]
    assert [to_steps(text, horizon) for text in texts] == [12, 12, 5, 8, 10]  # 7.5, halves up
    # An update that has begun makes a percentage of something.
    assert (horizon.updates, Horizon(3, batches_per_update=4).updates) == (25, 1)


@pytest.mark.usefixtures("unchecked_types")
def test_a_horizon_is_a_value() -> None:
    assert Horizon(batches=5) == Horizon(batches=5)
    assert hash(Horizon(batches=5)) == hash(Horizon(batches=5))
    assert type(Horizon(batches=np.int32(5)).batches) is int  # type: ignore[arg-type]
