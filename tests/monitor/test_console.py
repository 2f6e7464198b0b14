from __future__ import annotations

import io

import numpy as np
import pytest

from flaxtrain.errors import ArgumentError
from flaxtrain.monitor import ConsoleWriter


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def console(clock, **kwargs):
    stream = io.StringIO()
    return ConsoleWriter(stream, clock=clock, **kwargs), stream


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_training_line_tells_progress_values_speed_and_what_is_left(clock):
    writer, stream = console(clock, total_steps=570)
    scalars = {"loss": 0.43211, "accuracy": 0.874, "learning_rate": 1e-3, "steps_per_sec": 61.2}
    writer.write_scalars(100, scalars)
    assert lines(stream) == [
        "train    100/570  18%  loss 0.4321  accuracy 0.8740  learning_rate 1.0e-03"
        "  61.2 steps/s  eta 0:08"
    ]


def test_a_validation_line_tells_results_only(clock):
    writer, stream = console(clock, total_steps=570)
    writer.write_scalars(100, {"loss": 0.5, "steps_per_sec": 9.0}, run="val")
    ConsoleWriter(stream, 570, clock, run="val").write_scalars(570, {"loss": 0.25})
    assert lines(stream) == [
        "val      100/570  18%  loss 0.5000",
        "val      570/570 100%  loss 0.2500",
    ]


def test_without_a_total_there_is_no_share_and_no_eta(clock):
    writer, stream = console(clock)
    writer.write_scalars(12345, {"loss": 1.5, "steps_per_sec": 10.0})
    assert lines(stream) == ["train  12345  loss 1.5000  10 steps/s"]


def test_speed_is_measured_from_line_to_line_so_that_compilation_is_left_out(clock):
    writer, stream = console(clock, total_steps=100)
    clock.now = 30.0  # compilation
    writer.write_scalars(10, {"loss": 1.5})
    clock.now = 32.0
    writer.write_scalars(10, {"loss": 1.5}, run="val")
    clock.now = 35.0
    writer.write_scalars(20, {"loss": 1.5})
    assert [line.split("loss 1.5000")[1] for line in lines(stream)] == [
        "",
        "",
        "  2 steps/s  eta 0:40",
    ]


def test_a_clock_that_stands_still_and_a_step_that_goes_back_do_no_harm(clock):
    writer, stream = console(clock, total_steps=100)
    for step in (10, 20, 5):
        writer.write_scalars(step, {"loss": 1.5})
    assert all(line.endswith("loss 1.5000") for line in lines(stream))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.43211, "0.4321"),
        (1e-3, "1.0e-03"),
        (0.0, "0"),
        (3, "3"),
        (-2.5, "-2.5000"),
        (123456.5, "1.2e+05"),
        (9999.5, "9999.5000"),
        (2e9, "2.0e+09"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-1e-7, "-1.0e-07"),
    ],
)
def test_numbers_are_short_and_readable(clock, value, text):
    writer, stream = console(clock)
    writer.write_scalars(1, {"x": value})
    assert lines(stream) == [f"train      1  x {text}"]


@pytest.mark.parametrize(
    ("left", "text"),
    [(1, "0:01"), (59, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_the_time_that_is_left_is_in_minutes_or_hours(clock, left, text):
    writer, stream = console(clock, total_steps=100_000)
    writer.write_scalars(100_000 - left, {"steps_per_sec": 1.0})
    assert stream.getvalue().endswith(f"eta {text}\n")


def test_the_last_percent_is_for_the_last_step_only(clock):
    writer, stream = console(clock, total_steps=1000)
    writer.write_scalars(999, {})
    writer.write_scalars(1000, {})
    assert ["99%" in lines(stream)[0], "100%" in lines(stream)[1]] == [True, True]


def test_detail_tags_are_hidden_unless_asked_for(clock):
    writer, stream = console(clock)
    writer.write_scalars(1, {"loss": 1.5, "norm/grad": 2.5})
    chosen = ConsoleWriter(stream, clock=clock, tags=["norm/grad", "absent"])
    chosen.write_scalars(1, {"loss": 1.5, "norm/grad": 2.5})
    assert lines(stream) == ["train      1  loss 1.5000", "train      1  norm/grad 2.5000"]


def test_texts_are_printed_only_when_asked_for(clock):
    writer, stream = console(clock)
    writer.write_texts(1, {"note": "hello"})
    assert lines(stream) == []
    ConsoleWriter(stream, clock=clock, texts=True).write_texts(1, {"note": "hello"})
    assert lines(stream) == ["train      1  note", "hello"]


def test_other_kinds_are_not_printed(clock):
    writer, stream = console(clock)
    writer.write_images(1, {"x": np.zeros((1, 2, 2, 1))})
    writer.write_histograms(1, {"x": np.zeros(2)})
    writer.write_hparams({"lr": 1.0})
    writer.flush()
    writer.close()
    assert stream.getvalue() == ""


def test_the_default_stream_is_standard_output_of_the_moment(capsys):
    writer = ConsoleWriter()
    writer.write_line("as it is")
    assert capsys.readouterr().out == "as it is\n"


def test_a_negative_total_is_refused():
    with pytest.raises(ArgumentError, match="total_steps=-1"):
        ConsoleWriter(total_steps=-1)
