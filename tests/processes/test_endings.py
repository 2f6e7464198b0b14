"""Runs of two processes that one of them ends: both end after the same batch, and in order."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from tests.processes.running import CHILD, Run
from tests.processes.test_peers import SECONDS

TRAINER = CHILD.with_name("trainer_child.py")
LONG = ["steps=100000"]
# How long the others may take: a few of their steps, and the pace at which they tell it.
SOON = 5.0


def ends(run: Run) -> tuple[int, str]:
    """Returns the last batch and the reason that processes have printed, all the same."""
    found = {re.findall(r"ended (\d+) by (.*)\n", run.text(index))[-1] for index in (0, 1)}
    assert len(found) == 1, run.all_texts()
    batches, reason = found.pop()
    return int(batches), reason


def test_ctrl_c_in_one_process_ends_both_after_the_same_batch_and_saves_all(
    tmp_path: Path,
) -> None:
    words = [*LONG, "pause=0.001", "fsdp=1", f"save={tmp_path / 'saved'}"]
    with Run(tmp_path, [words, words], TRAINER) as run:
        run.wait_for_step(1, 20)
        run.processes[1].send_signal(signal.SIGINT)
        assert [run.end(1, SOON), run.end(0, SOON)] == [130, 130], run.all_texts()
    batches, _ = ends(run)
    assert (tmp_path / "saved" / str(batches)).is_dir()
    for index in (0, 1):
        assert "KeyboardInterrupt: in process 1" in run.text(index)
        assert "flaxtrain: process" not in run.text(index)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("per_call", [1, 4])
def test_a_hook_that_stops_in_one_process_stops_both(
    tmp_path: Path, victim: int, per_call: int
) -> None:
    words = [[*LONG, f"per_call={per_call}"] for _ in range(2)]
    words[victim].append("stop=40")
    with Run(tmp_path, words, TRAINER) as run:
        run.wait_for_step(victim, 40)
        assert [run.end(0, SOON), run.end(1, SOON)] == [0, 0], run.all_texts()
    batches, reason = ends(run)
    assert 40 <= batches <= 40 + 8 + 2 * per_call and batches % per_call == 0
    assert reason == "enough here" and "flaxtrain:" not in run.all_texts()


@pytest.mark.slow
def test_processes_that_all_stop_do_so_where_they_said(tmp_path: Path) -> None:
    words = [*LONG, "stop=40"]
    with Run(tmp_path, [words, words], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert ends(run) == (40, "enough here")


@pytest.mark.slow
def test_a_stop_at_the_last_batch_is_the_reason_of_all(tmp_path: Path) -> None:
    with Run(tmp_path, [["steps=6"], ["steps=6", "stop=6"]], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert ends(run) == (6, "enough here")


@pytest.mark.slow
def test_ctrl_c_twice_in_one_process_ends_the_other_one_too(tmp_path: Path) -> None:
    words = [[*LONG], [*LONG, "pause=3"]]
    with Run(tmp_path, words, TRAINER) as run:
        run.wait_for_step(1, 1)
        for _ in range(2):
            run.processes[1].send_signal(signal.SIGINT)
            time.sleep(0.5)  # two at once would be one
        assert run.end(1, SECONDS) == 130
        assert run.end(0, SECONDS) == ENDED_BY_A_PEER
    assert "process 1 failed at batch 1: KeyboardInterrupt" in run.text(0)


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_a_bad_step_that_one_looks_at_for_longer_is_reported_by_both(
    tmp_path: Path, slow: int
) -> None:
    words = [["nan=4"], ["nan=4"]]
    # Longer than the 2 s that an error leaves to the others, and the 8 s of silence.
    words[slow].append("look=11")
    with Run(tmp_path, words, TRAINER) as run:
        assert [run.end(0), run.end(1)] == [1, 1], run.all_texts()
    for index in (0, 1):
        assert "NonFiniteError" in run.text(index)
        assert "flaxtrain: process" not in run.text(index)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_evaluation_that_fails_in_one_process_ends_the_other_one(
    tmp_path: Path, victim: int
) -> None:
    words = [["evaluate=works", "steps=4"], ["evaluate=works", "steps=4"]]
    words[victim][0] = "evaluate=fails"
    with Run(tmp_path, words, TRAINER) as run:
        assert run.end(victim) == 1
        assert run.end(1 - victim, SECONDS) == ENDED_BY_A_PEER
    assert f"process {victim} failed at batch 4: DataError" in run.text(1 - victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_data_that_end_early_in_one_process_are_an_error_soon(
    tmp_path: Path, victim: int
) -> None:
    words = [["steps=0", "data=30"], ["steps=0", "data=30"]]
    words[victim][1] = "data=20"
    with Run(tmp_path, words, TRAINER) as run:
        assert run.end(victim) == 1
        assert run.end(1 - victim, SECONDS) == ENDED_BY_A_PEER
    told = f"this process has made all of its 20 batches, and process {1 - victim} goes on"
    assert told in run.text(victim) and f"process {victim} failed" in run.text(1 - victim)


@pytest.mark.slow
def test_processes_with_unequal_steps_do_not_begin(tmp_path: Path) -> None:
    with Run(tmp_path, [["steps=6"], ["steps=7"]], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [1, 1]
    for index in (0, 1):
        assert "ProcessError: the processes disagree about total" in run.text(index)
