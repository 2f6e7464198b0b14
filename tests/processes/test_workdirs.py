"""Two processes and the folder of their run: a rehearsal in it, and one that has none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes.running import CHILD, Run
from tests.processes.test_peers import SECONDS

TRAINER = CHILD.with_name("trainer_child.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("split", [[], ["fsdp=1"]], ids=["whole", "split"])
def test_a_rehearsal_of_two_is_in_one_folder_and_leaves_nothing(
    tmp_path: Path, split: list[str]
) -> None:
    words = ["debug=smoke", f"workdir={tmp_path / 'run'}", *split]
    with Run(tmp_path, [words, words], TRAINER) as run:
        assert [run.end(0, 60.0), run.end(1, 60.0)] == [0, 0], run.all_texts()
    for index in (0, 1):
        assert "a checkpoint, restored to the same state" in run.text(index)
    folders = [re.findall(r"folder (.*)\n", run.text(index)) for index in (0, 1)]
    assert folders[0] == folders[1] and folders[0][0].startswith("rehearsal-")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"checkpoints", "train"} | (left & {"val"})


@pytest.mark.parametrize("without", [0, 1])
@pytest.mark.parametrize("mode", [[], ["debug=smoke"]], ids=["run", "rehearsal"])
def test_a_workdir_that_one_process_lacks_is_an_error_of_both(
    tmp_path: Path, without: int, mode: list[str]
) -> None:
    words = [[*mode], [*mode]]
    words[1 - without].append(f"workdir={tmp_path / 'run'}")
    with Run(tmp_path, words, TRAINER) as run:
        assert [run.end(0, 4 * SECONDS), run.end(1, 4 * SECONDS)] == [1, 1], run.all_texts()
    for index in (0, 1):
        assert "ProcessError: the processes disagree about workdir" in run.text(index)
    assert not (tmp_path / "run").exists()
