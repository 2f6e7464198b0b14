from __future__ import annotations

import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.monitor import Throughput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throughput(clock):
    return Throughput(clock)


def test_rates_are_counts_over_time(clock, throughput):
    for _ in range(10):
        clock.now += 0.5
        throughput.step(examples=64)
    assert throughput.window() == {
        "steps_per_sec": 2.0,
        "examples_per_sec": 128.0,
        "data_wait_share": 0.0,
    }


def test_each_window_starts_anew(clock, throughput):
    clock.now += 1.0
    throughput.step(examples=10)
    throughput.window()
    clock.now += 4.0
    throughput.step(examples=8)
    assert throughput.window()["examples_per_sec"] == 2.0


def test_pauses_are_left_out_even_nested_and_when_they_raise(clock, throughput):
    clock.now += 1.0
    with throughput.pause():
        clock.now += 10.0
        with throughput.pause():
            clock.now += 10.0
        clock.now += 10.0
    with pytest.raises(KeyError), throughput.pause():
        clock.now += 10.0
        raise KeyError
    clock.now += 1.0
    throughput.step()
    assert throughput.window()["steps_per_sec"] == 0.5


def test_waiting_is_a_share_and_pauses_inside_it_dont_count(clock, throughput):
    with throughput.waiting():
        clock.now += 1.0
        with throughput.pause():
            clock.now += 50.0
    throughput.waited(0.5)
    clock.now += 2.0 + 0.5
    throughput.step()
    # 1.5 of 3.5 seconds
    assert throughput.window()["data_wait_share"] == pytest.approx(1.5 / 3.5)


def test_waiting_inside_a_pause_is_part_of_the_pause(clock, throughput):
    with throughput.pause():
        with throughput.waiting():
            clock.now += 5.0
        throughput.waited(5.0)
    clock.now += 1.0
    throughput.step()
    assert throughput.window()["data_wait_share"] == 0.0


def test_a_window_may_end_inside_a_pause(clock, throughput):
    clock.now += 1.0
    throughput.step()
    with throughput.pause():
        clock.now += 10.0
        assert throughput.window()["steps_per_sec"] == 1.0
        clock.now += 10.0
    clock.now += 1.0
    throughput.step()
    assert throughput.window()["steps_per_sec"] == 1.0
    assert throughput.totals()["train"] == 2.0


def test_nothing_counted_or_no_time_passed_gives_no_rates(clock, throughput):
    clock.now += 1.0
    assert throughput.window() == {}
    throughput.step()
    assert throughput.window() == {}


def test_totals_run_over_all_windows(clock, throughput):
    for _ in range(3):
        throughput.waited(0.25)
        clock.now += 1.0
        throughput.step()
        throughput.window()
    clock.now += 1.0
    with throughput.pause():
        clock.now += 7.0
    assert throughput.totals() == {"train": 4.0, "data_wait": 0.75}


def test_several_steps_can_be_counted_at_once(clock, throughput):
    clock.now += 2.0
    throughput.step(examples=256, steps=8)
    assert throughput.window()["steps_per_sec"] == 4.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: t.step(examples=-1), ArgumentError),
        (lambda t: t.step(steps=-1), ArgumentError),
        (lambda t: t.waited(-0.1), ArgumentError),
        (lambda t: t.waited(float("nan")), ArgumentError),
    ],
)
def test_negative_counts_are_refused(throughput, call, error):
    with pytest.raises(error):
        call(throughput)


def test_counts_that_are_no_integers_are_refused(throughput):
    with pytest.raises((ArgumentTypeError, TypeError)):
        throughput.step(examples="8")
