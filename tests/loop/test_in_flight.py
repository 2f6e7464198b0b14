"""A bounded number of steps is under way, whatever makes them; of a mesh, see tests/devices."""

from __future__ import annotations

import pytest

import flaxtrain as ft
from flaxtrain.loop.in_flight import IN_FLIGHT
from tests.loop.dispatches import LONG_RUNS, slow_trainer, under_way

LOOPS = 20


@pytest.fixture(scope="module")
def fitted() -> ft.Trainer:
    one = slow_trainer(LOOPS)
    LONG_RUNS["fit"](one)
    return one


@pytest.mark.parametrize("name", LONG_RUNS)
def test_the_host_is_ahead_of_a_slow_device_by_so_many_steps_at_most(
    name: str, fitted: ft.Trainer
) -> None:
    with under_way() as found:
        LONG_RUNS[name](fitted)
    assert 2 <= max(found) <= IN_FLIGHT


@pytest.mark.parametrize(
    ("steps", "calls"), [(2, IN_FLIGHT // 2), pytest.param(10, 2, marks=pytest.mark.slow)]
)
def test_calls_of_several_steps_are_as_many_as_make_up_so_many_steps_or_two(
    steps: int, calls: int
) -> None:
    one = slow_trainer(LOOPS, steps_per_call=steps)
    with under_way() as found:
        LONG_RUNS["fit"](one)
    assert 2 <= max(found) <= calls
