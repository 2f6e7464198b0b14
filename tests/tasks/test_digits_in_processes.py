"""The digits in two processes: the same parameters as in one with two devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.digits_in_processes import __main__ as script

ROOT = Path(__file__).resolve().parents[2]


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(sys.executable, "-m", "tasks.digits_in_processes"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_each_call_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert script.new_folder(tmp_path / "runs") == tmp_path / "runs" / "1"
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    assert script.new_folder(tmp_path) == tmp_path / "2"
    # What a run has left is not gone on with in silence.
    done = demo(tmp_path, "--workdir", "1")
    assert done.returncode == 2
    assert "1 holds a run, and both are to begin anew: leave --workdir out" in done.stderr


@pytest.mark.slow
def test_two_processes_and_one_end_with_the_same_parameters(tmp_path: Path) -> None:
    done = demo(tmp_path, "--epochs", "1")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "two processes train in runs/digits-2proc/1" in done.stdout
    assert "the same parameters, bit for bit: yes" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "] accuracy " in line]
    assert len({line.split("] ")[1] for line in lines}) == 1 and len(lines) == 3
    # Process 0 alone writes.
    found = (tmp_path / "runs" / "digits-2proc" / "1").iterdir()
    assert sorted(path.name for path in found) == ["checkpoints", "train", "val"]
