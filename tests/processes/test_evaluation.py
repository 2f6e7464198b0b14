"""Passes over data of which two processes have unequally many batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from tests.processes.running import CHILD, Run
from tests.processes.test_peers import SECONDS

SCRIPT = CHILD.with_name("evaluation_child.py")
pytestmark = pytest.mark.slow
CALLS = ["evaluate", "predict", "recompute_batch_stats"]


def test_an_evaluation_with_unequally_many_batches_does_not_begin(tmp_path: Path) -> None:
    with Run(tmp_path, [["evaluate", "list", "4"], ["evaluate", "list", "3"]], SCRIPT) as run:
        assert [run.end(0), run.end(1, SECONDS)] == [1, 1], run.all_texts()
    for index in (0, 1):
        assert "the processes disagree about batches" in run.text(index)
        assert "batches: 4 (process 0); 3 (process 1)" in run.text(index)


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("call", CALLS)
def test_batches_that_are_not_counted_before_and_end_early_in_one_process_are_an_error(
    tmp_path: Path, call: str, short: int
) -> None:
    words = [[call, "generator", "20"], [call, "generator", "20"]]
    words[short][2] = "11"
    with Run(tmp_path, words, SCRIPT) as run:
        assert run.end(short) == 1, run.all_texts()
        assert run.end(1 - short, SECONDS) == ENDED_BY_A_PEER, run.all_texts()
    told = "this process has made all of its 11 batches, and not all of the others have come"
    assert told in run.text(short) and f"process {short} failed" in run.text(1 - short)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["list", "generator"])
def test_equally_many_batches_are_used(tmp_path: Path, call: str, kind: str) -> None:
    with Run(tmp_path, [[call, kind, "11"], [call, kind, "11"]], SCRIPT) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    assert run.text(0).splitlines()[-1] == run.text(1).splitlines()[-1] == "done"
