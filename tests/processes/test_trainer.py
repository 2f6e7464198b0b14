"""A Trainer in two processes, when one of them is killed, hangs or fails; see test_peers.py."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from tests.processes.running import CHILD, Run
from tests.processes.test_peers import SECONDS

pytestmark = pytest.mark.slow

TRAINER = CHILD.with_name("trainer_child.py")
LONG = ["steps=100000"]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=lambda kind: kind.name)
def test_a_trainer_whose_peer_is_killed_or_stopped_ends(
    tmp_path: Path, kind: signal.Signals, victim: int
) -> None:
    other = 1 - victim
    with Run(tmp_path, [LONG, LONG], TRAINER) as run:
        run.wait_for_step(victim, 500)
        run.processes[victim].send_signal(kind)
        assert run.end(other, SECONDS) != 0
    told = rf"flaxtrain: process {victim} is gone: .*; this process \({other}\) ends"
    assert re.search(told, run.text(other)), run.all_texts()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_hook_that_raises_ends_both(tmp_path: Path, victim: int) -> None:
    words = [[*LONG, f"save={tmp_path / 'saved'}"] for _ in range(2)]
    words[victim].append("raise=50")
    with Run(tmp_path, words, TRAINER) as run:
        assert run.end(victim) == 1
        assert run.end(1 - victim, SECONDS) == ENDED_BY_A_PEER
    told = f"process {victim} failed at batch 50: ValueError: no more disk"
    assert told in run.text(1 - victim)
    # What is left to process 0 when process 1 has failed is not the state after a batch.
    assert (tmp_path / "saved" / "50").exists() == (victim == 0)


@pytest.mark.slow
def test_who_saves_for_long_after_an_error_ends_the_others_meanwhile(tmp_path: Path) -> None:
    words = [*LONG, f"save={tmp_path / 'saved'}", "slow=18"]
    with Run(tmp_path, [[*words, "raise=50"], words], TRAINER) as run:
        run.wait_for_step(0, 50)
        assert run.end(1, SECONDS) == ENDED_BY_A_PEER
        assert run.end(0) == 1
    assert "process 0 failed at batch 50: ValueError: no more disk" in run.text(1)
    assert (tmp_path / "saved" / "50").exists()


def test_a_bad_batch_is_an_error_of_each_process(tmp_path: Path) -> None:
    with Run(tmp_path, [["nan=4"], ["nan=4"]], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [1, 1]
    for index in (0, 1):
        assert "NonFiniteError" in run.text(index)
        assert "flaxtrain: process" not in run.text(index)


@pytest.mark.parametrize(
    ("word", "status", "error"),
    [("nan=4", 1, "NonFiniteError"), ("interrupt=3", 130, "KeyboardInterrupt")],
)
def test_the_last_state_is_saved_though_the_others_wait(
    tmp_path: Path, word: str, status: int, error: str
) -> None:
    # Longer than the 8 s after which a process that has left would be taken for lost.
    words = [word, "slow=12", f"save={tmp_path / 'saved'}"]
    with Run(tmp_path, [words, words], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [status, status], run.all_texts()
    assert (tmp_path / "saved" / "3").is_dir(), run.all_texts()
    for index in (0, 1):
        assert error in run.text(index)
        assert "flaxtrain: process" not in run.text(index)


def test_trainers_that_differ_do_not_begin(tmp_path: Path) -> None:
    with Run(tmp_path, [["rate=0.1"], ["rate=0.2"]], TRAINER) as run:
        assert [run.end(0), run.end(1)] == [1, 1]
    for index in (0, 1):
        assert "ProcessError: the processes disagree about spec" in run.text(index)
        assert "step 1\n" not in run.text(index)
