"""The digits in two processes: the same parameters as in one with two devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_and_one_end_with_the_same_parameters(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tasks.digits_in_processes"),
            *("--epochs", "1", "--workdir", str(tmp_path)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "the same parameters, bit for bit: yes" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "] accuracy " in line]
    assert len({line.split("] ")[1] for line in lines}) == 1 and len(lines) == 3
    # Process 0 alone writes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "train", "val"]
