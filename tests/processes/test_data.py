"""The data of two processes: whole in each, or in parts; sharded parameters; a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.running import CHILD, Run

SCRIPT = CHILD.with_name("data_child.py")


def lines(folder: Path, workdir: str, kind: str) -> list[str]:
    """Returns what two processes print of a run; both print the same."""
    folder.mkdir()
    with Run(folder, [[workdir, kind]] * 2, SCRIPT) as run:
        assert [run.end(0), run.end(1)] == [0, 0], run.all_texts()
    found = [
        [line for line in run.text(index).splitlines() if line.startswith(("steps", "found"))]
        for index in (0, 1)
    ]
    assert found[0] == found[1] and len(found[0]) == 2
    return found[0]


def test_a_finished_run_of_two_processes_that_is_continued_has_nothing_left_to_do(
    tmp_path: Path,
) -> None:
    whole = lines(tmp_path / "whole", str(tmp_path / "run"), "arrays")
    assert whole[0] == "steps 10 split True" and "(36, 2)" in whole[1]
    again = lines(tmp_path / "again", str(tmp_path / "run"), "arrays")
    assert again == whole
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10"]


@pytest.mark.slow
def test_parts_of_two_processes_are_the_whole_and_the_last_batch_is_padded_in_each(
    tmp_path: Path,
) -> None:
    whole = lines(tmp_path / "whole", "none", "arrays")
    parts = lines(tmp_path / "parts", "none", "parts")
    # Sums over other places of the same rows; the outputs come in the same order.
    assert parts[0] == whole[0]
    losses = [
        float.fromhex(line.split("'loss': '")[1].split("'")[0]) for line in (whole[1], parts[1])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert "(36, 2)" in parts[1]
