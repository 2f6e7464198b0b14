"""How many batches and microbatches make an update: as data, and refused where wrong."""

from __future__ import annotations

from typing import Any

import pytest

import flaxtrain as ft
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ArgumentTypeError, BatchError, FlaxtrainError


def test_a_number_is_that_of_microbatches() -> None:
    several = ft.OptSpec("sgd", 0.1, accumulate=4).accumulation
    assert (several.count, several.microbatches) == (1, 4)
    plain = ft.OptSpec("sgd", 0.1)
    assert plain.accumulation == ft.AccumulateBatches(1)
    assert plain.accumulation.describe(8) == ""


@pytest.mark.parametrize(
    "accumulate", [4, ft.AccumulateBatches(3), ft.AccumulateBatches(3, microbatches=2)]
)
def test_it_goes_through_json_and_prints_as_its_call(accumulate: Any) -> None:
    spec = ft.OptSpec("sgd", 0.1, accumulate=accumulate)
    assert ft.OptSpec.from_json(spec.to_json()) == spec
    assert eval(repr(accumulate), {"AccumulateBatches": ft.AccumulateBatches}) == accumulate
    plain = ft.OptSpec("sgd", 0.1)
    assert plain.diff(spec) == (f"accumulate: 1 -> {accumulate!r}",)
    assert plain.fingerprint() != spec.fingerprint()
    # What is left at its default says nothing.
    assert plain.replace(accumulate=1).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: ft.OptSpec("sgd", 0.1, accumulate=0), ArgumentError, "accumulate=0"),
        (lambda: ft.OptSpec("sgd", 0.1, accumulate=2.0), ArgumentTypeError, "accumulate=2.0"),
        (lambda: ft.OptSpec("sgd", 0.1, accumulate=True), ArgumentTypeError, "accumulate=True"),
        (lambda: ft.AccumulateBatches(0), ArgumentError, "count=0"),
        (lambda: ft.AccumulateBatches("2"), ArgumentTypeError, "count='2'"),
        (lambda: ft.AccumulateBatches(2, microbatches=-1), ArgumentError, "microbatches=-1"),
        (lambda: ft.AccumulateBatches(2, microbatch=1), ArgumentTypeError, "microbatches"),
        (
            lambda: (
                ft.Group("head/**", accumulate=2)
                and ft.OptSpec("sgd", 0.1, groups=[ft.Group("head/**", accumulate=2)])
            ),
            ArgumentError,
            "accumulate is said of all parameters together",
        ),
    ],
)
def test_what_is_wrong_is_refused(
    make: Any, kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind, match=text):
        make()


def test_rows_must_divide_into_microbatches() -> None:
    several = ft.OptSpec("sgd", 0.1, accumulate=4).accumulation
    several.check_rows(32)
    with pytest.raises(BatchError, match="30 rows do not divide into 4"):
        several.check_rows(30)


def test_a_horizon_of_another_number_of_batches_is_refused() -> None:
    spec = ft.OptSpec("sgd", 0.1, accumulate=ft.AccumulateBatches(4), ema=ft.Ema(every="10%"))
    assert spec.resolve(Horizon(1000, batches_per_update=4)).ema == ft.Ema(every=25)
    with pytest.raises(ArgumentError, match=r"batches_per_update=1, .* of 4 batches") as caught:
        spec.resolve(Horizon(1000))
    assert caught.value.fix == "pass Horizon(..., batches_per_update=4)"
    absolute = spec.replace(ema=ft.Ema(every=12))
    assert absolute.resolve(Horizon()) == absolute
