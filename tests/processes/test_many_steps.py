"""Several steps per call in two processes, against one process with two devices; and resuming.

Two devices add two numbers, in either order to the same bits, and the programs are the same.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from flaxtrain.parallel.processes.leaving import ENDED_BY_A_PEER
from tests.processes.running import CHILD, Run
from tests.processes.test_peers import SECONDS
from tests.runs import FLOAT32_BAR, deviation, differing_leaves

SCRIPT = CHILD.with_name("many_steps_child.py")
Found = dict[str, np.ndarray]
THROUGH, HALF = 16, 9  # of six batches an epoch: in the middle of the third, and of the second


@contextmanager
def started(folder: Path, *words: str, processes: int) -> Iterator[Run]:
    """Yields a run of so many processes on two devices."""
    folder.mkdir()
    environment = {"OUTPUT": str(folder)} | ({"OWN_DEVICES": "2"} if processes == 1 else {})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with Run(folder, [words] * processes, SCRIPT) as run:
            yield run


def runs(folder: Path, *words: str, processes: int) -> tuple[dict[str, Found], list[str]]:
    """Returns what runs leave behind, by name, and what each process prints."""
    with started(folder, *words, processes=processes) as run:
        ends = [run.end(index) for index in range(processes)]
        assert ends == [0] * processes, run.all_texts()
        texts = [run.text(index) for index in range(processes)]
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}, texts


def test_several_steps_per_call_in_two_processes_are_the_run_of_one_step_per_call(
    tmp_path: Path,
) -> None:
    words = [f"name={k},k={k},steps={THROUGH}" for k in (1, 4)]
    two, texts = runs(tmp_path / "two", *words, processes=2)
    for text in texts:
        assert text.count("compiled {'train': 1, 'eval': 1}") == 2
    assert two["4"]["step"] == THROUGH and len(two["4"]["losses"]) == 4 + 2
    assert deviation(two["4"], two["1"]) <= FLOAT32_BAR


@pytest.mark.slow
def test_two_processes_make_the_bits_of_one_process_with_two_devices(tmp_path: Path) -> None:
    words = [f"name={k},k={k},steps={THROUGH}" for k in (1, 4)]
    two, _ = runs(tmp_path / "two", *words, processes=2)
    one, _ = runs(tmp_path / "one", *words, processes=1)
    for name, found in two.items():
        assert differing_leaves(found, one[name]) == []


@pytest.mark.slow
def test_a_run_goes_on_within_an_epoch_in_as_many_processes_and_in_fewer_and_more(
    tmp_path: Path,
) -> None:
    """Also on another number of processes the mesh is the same, and so are the bits."""
    saved = {name: tmp_path / name for name in ("by two", "by two again", "by one")}
    half = f"k=4,steps={THROUGH},stop={HALF}"

    def goes_on(name: str, place: str) -> str:
        return f"name={name},k=auto,steps={THROUGH},workdir={saved[place]}"

    through = f"name=through,k=4,steps={THROUGH}"
    two, _ = runs(
        tmp_path / "begin", through, f"name=half,{half},workdir={saved['by two']}", processes=2
    )
    shutil.copytree(saved["by two"], saved["by two again"])
    one, one_said = runs(
        tmp_path / "one",
        f"name=half,{half},workdir={saved['by one']}",
        goes_on("fewer", "by two"),
        processes=1,
    )
    again, again_said = runs(
        tmp_path / "again",
        goes_on("same", "by two again"),
        goes_on("more", "by one"),
        processes=2,
    )
    assert two["half"]["step"] == HALF
    for said in (one_said[0], again_said[0]):
        assert "checkpoint 9" in said and "steps_per_call='auto' has chosen 4" in said
        assert "not the bits" not in said and "not the examples" not in said
    for found in (one["fewer"], again["same"], again["more"]):
        own = {name: leaf for name, leaf in found.items() if name != "losses"}
        assert differing_leaves(own, {name: two["through"][name] for name in own}) == []


@pytest.mark.slow
def test_data_that_end_early_in_one_of_two_processes_end_both(tmp_path: Path) -> None:
    """Two batches are left for a call of four in the one; the other waits in the third step."""
    words = f"name=ends,k=4,steps={THROUGH},ends=1:6"
    with started(tmp_path / "two", words, processes=2) as run:
        assert run.end(1) == 1
        assert run.end(0, SECONDS) == ENDED_BY_A_PEER
        assert "DataError: the generator can be iterated once only" in run.text(1)
        assert re.search(r"process 1 failed at \w+ 6: DataError: the gen", run.text(0))
