"""What becomes of a run of two processes when one of them is killed, hangs or fails.

Each test starts two Python processes with one CPU device each; see child.py.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from tests.processes.running import Run

# What is promised; a usual run needs 0.1 to 9 seconds.
SECONDS = 15.0
LONG = ["steps=100000"]
SIGNALS = [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]


def test_processes_that_end_do_so_at_once_and_agree(tmp_path: Path) -> None:
    with Run(tmp_path, [["steps=5"], ["steps=5"]]) as run:
        assert [run.end(0), run.end(1, seconds=10.0)] == [0, 0], run.all_texts()
        results = [re.findall(r"result (\[.*\]) (\w+)", run.text(index))[0] for index in (0, 1)]
    assert results[0][0] == results[1][0]
    assert [writer for _, writer in results] == ["True", "False"]
    assert "flaxtrain:" not in run.all_texts()


def test_an_error_in_one_process_ends_the_other_one(tmp_path: Path) -> None:
    with Run(tmp_path, [LONG, [*LONG, "raise=7"]]) as run:
        assert run.end(1) == 1
        assert run.end(0, SECONDS) == ENDED_BY_A_PEER
    assert "ValueError: row 7 is bad\nmore about it" in run.text(1)
    assert "process 1 failed at batch 6: ValueError: row 7 is bad; this process (0)" in (
        run.text(0)
    )
    assert run.text(0).count("flushed") == 1


@pytest.mark.slow
def test_an_error_in_process_0_ends_the_other_one(tmp_path: Path) -> None:
    with Run(tmp_path, [[*LONG, "raise=7"], LONG]) as run:
        assert run.end(0) == 1
        assert run.end(1, SECONDS) == ENDED_BY_A_PEER
    assert "process 0 failed at batch 6: ValueError: row 7 is bad; this process (1)" in (
        run.text(1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kind", SIGNALS, ids=[kind.name for kind in SIGNALS])
def test_a_process_that_is_killed_or_stopped_ends_the_other_one(
    tmp_path: Path, kind: signal.Signals, victim: int
) -> None:
    other = 1 - victim
    with Run(tmp_path, [LONG, LONG]) as run:
        # Beats come once a second.
        run.wait_for_step(victim, 60)
        run.processes[victim].send_signal(kind)
        assert run.end(other, SECONDS) != 0
    told = re.search(
        rf"flaxtrain: process {victim} is gone: .*, last known at batch (\d+); "
        rf"this process \({other}\) ends",
        run.text(other),
    )
    assert told, run.all_texts()
    last = int(re.findall(r"step (\d+)\n", run.text(victim))[-1])
    assert 0 < int(told[1]) <= last


@pytest.mark.slow
def test_an_error_of_all_is_reported_as_each_ones_own(tmp_path: Path) -> None:
    with Run(tmp_path, [["raise=7"], ["raise=7"]]) as run:
        assert [run.end(0), run.end(1)] == [1, 1]
    for index in (0, 1):
        assert "ValueError: row 7 is bad" in run.text(index)
        assert "flaxtrain: process" not in run.text(index)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_that_is_caught_ends_the_other_one_too(tmp_path: Path, victim: int) -> None:
    words = [[*LONG], [*LONG]]
    words[victim] += ["raise=7", "catch=1"]
    with Run(tmp_path, words) as run:
        assert run.end(victim) == 1
        assert run.end(1 - victim, SECONDS) == ENDED_BY_A_PEER
    assert f"process {victim} failed at batch 6: ValueError: row 7" in run.text(1 - victim)
    assert "flaxtrain:" not in run.text(victim)


@pytest.mark.slow
def test_an_error_that_all_catch_ends_nobody(tmp_path: Path) -> None:
    with Run(tmp_path, [["raise=7", "catch=1"]] * 2) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert "flaxtrain:" not in run.all_texts()


@pytest.mark.slow
def test_who_catches_an_error_of_all_may_have_more_to_do(tmp_path: Path) -> None:
    words = ["raise=7", "catch=1"]
    # Longer than the 3 s that the error of one leaves, and the 8 s of silence after them.
    with Run(tmp_path, [[*words, "late=14"], words]) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert "flaxtrain:" not in run.all_texts()


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_has_more_to_do_is_waited_for(tmp_path: Path, late: int) -> None:
    words = [["steps=5"], ["steps=5"]]
    words[late].append("late=12")  # longer than the silence of a lost process
    with Run(tmp_path, words) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert "flaxtrain:" not in run.all_texts()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_after_the_work_ends_one_that_waits(tmp_path: Path, victim: int) -> None:
    words = [["steps=5"], ["steps=5"]]
    words[victim].append("after=raise")
    with Run(tmp_path, words) as run:
        assert run.end(victim) == 1
        assert run.end(1 - victim, SECONDS) == ENDED_BY_A_PEER
    assert f"process {victim} failed at batch 5: KeyError" in run.text(1 - victim)


@pytest.mark.slow
def test_processes_with_different_seeds_do_not_begin(tmp_path: Path) -> None:
    with Run(tmp_path, [["seed=3"], ["seed=4"]]) as run:
        assert [run.end(0), run.end(1)] == [1, 1]
    for index in (0, 1):
        assert "ProcessError: the processes disagree about seed" in run.text(index)
        assert "seed: 3 (process 0); 4 (process 1)" in run.text(index)
        assert "step 1\n" not in run.text(index)


@pytest.mark.slow
def test_all_of_four_processes_end_when_one_is_killed(tmp_path: Path) -> None:
    with Run(tmp_path, [LONG] * 4) as run:
        run.wait_for_step(2, 60)
        run.processes[2].kill()
        statuses = [run.end(index, SECONDS) for index in (0, 1, 3)]
    assert statuses == [ENDED_BY_A_PEER] * 3, run.all_texts()
    for index in (0, 1, 3):
        assert "flaxtrain: process 2 is gone" in run.text(index)
