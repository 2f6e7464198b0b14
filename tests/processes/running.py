"""Real processes on this machine: started, disturbed, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

CHILD = Path(__file__).with_name("child.py")
ROOT = CHILD.parents[2]
# A busy machine takes long to import jax twice.
PATIENCE = 120.0


def free_port() -> int:
    """A port that nobody has now; the next ones to be handed out are others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Run:
    """Processes of one run, a context; on the way out all of them are killed.

    Args:
        folder: for what they print.
        words: the arguments of each process.
        script: what each of them runs.
    """

    def __init__(
        self, folder: Path, words: Sequence[Sequence[str]], script: Path = CHILD
    ) -> None:
        self.paths = [folder / f"{index}.txt" for index in range(len(words))]
        self._words, self._script = words, script
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Run:
        address = f"127.0.0.1:{free_port()}"
        # One device to a process, whatever the tests' own process was given.
        flags = re.sub(
            r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
        )
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {
            "PYTHONPATH": path,
            "XLA_FLAGS": flags,
            "FLAXTRAIN_COORDINATOR": address,
            "FLAXTRAIN_PROCESSES": str(len(self._words)),
        }
        for index, words in enumerate(self._words):
            with self.paths[index].open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(self._script), *words],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment | {"FLAXTRAIN_PROCESS": str(index)},
                        start_new_session=True,
                    )
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def text(self, index: int) -> str:
        return self.paths[index].read_text(errors="replace")

    def all_texts(self) -> str:
        return "\n".join(f"--- {i}\n{self.text(i)}" for i in range(len(self.paths)))

    def wait_for_step(self, index: int, step: int) -> None:
        self._wait(lambda: f"step {step}\n" in self.text(index), f"step {step}")

    def end(self, index: int, seconds: float = PATIENCE) -> int:
        """Returns the exit status of a process, which must end within `seconds`."""
        process = self.processes[index]
        self._wait(lambda: process.poll() is not None, f"the end of process {index}", seconds)
        return process.wait()

    def _wait(self, done: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f"{what}: not in {seconds} s\n{self.all_texts()}"
            time.sleep(0.02)
