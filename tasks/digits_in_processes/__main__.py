"""`python -m tasks.digits_in_processes`: the digits in two processes, then in one.

Starts two processes on this machine with one CPU device each, and then a single one with two
devices. Both runs have to end with the same parameters, bit for bit. Each call begins anew, in
a folder of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

FLAG = "--xla_force_host_platform_device_count"
RUNS = Path("runs/digits-2proc")


def free_port() -> int:
    """Returns a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Program:
    """`tasks.digits_in_processes.train` in a process; its lines are printed as they come.

    Args:
        name: put before each line.
        arguments: of the program.
        devices: number of CPU devices.
        **variables: of its environment.
    """

    def __init__(self, name: str, arguments: list[str], devices: int, **variables: str) -> None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={devices}"
        self.name, self.parameters = name, ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.digits_in_processes.train", *arguments],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(f"[{self.name}] {line}", end="", flush=True)
            if line.startswith("parameters "):
                self.parameters = line.split()[1]

    def end(self) -> int:
        """Waits for the process; returns its exit status."""
        status = self.process.wait()
        self._reader.join()
        return status


def in_two_processes(arguments: list[str]) -> list[Program]:
    """Trains in two processes with one device each."""
    address = f"127.0.0.1:{free_port()}"
    return [
        Program(
            f"process {index}",
            arguments,
            devices=1,
            FLAXTRAIN_COORDINATOR=address,
            FLAXTRAIN_PROCESSES="2",
            FLAXTRAIN_PROCESS=str(index),
        )
        for index in range(2)
    ]


def finished(programs: list[Program]) -> list[str]:
    """Returns the fingerprints of the parameters; ends with the programs where one fails."""
    try:
        statuses = [program.end() for program in programs]
    finally:
        for program in programs:
            program.process.kill()
    if any(statuses):
        sys.exit(f"the processes ended with the statuses {statuses}")
    return [program.parameters for program in programs]


def new_folder(runs: Path = RUNS) -> Path:
    """Returns a folder that is not there yet: `1`, `2` and so on."""
    numbered = (runs / str(number) for number in itertools.count(1))
    return next(path for path in numbered if not path.exists())


def main() -> None:
    """Runs both, and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", default="10")
    parser.add_argument("--workdir", type=Path, help=f"default: a new one below {RUNS}")
    arguments = parser.parse_args()
    workdir: Path = arguments.workdir or new_folder()
    if (workdir / "checkpoints").exists():
        parser.error(f"{workdir} holds a run, and both are to begin anew: leave --workdir out")
    print(f"two processes train in {workdir}", flush=True)
    epochs = ["--epochs", arguments.epochs]
    two = finished(in_two_processes([*epochs, "--workdir", str(workdir)]))
    one = finished([Program("one process", epochs, devices=2)])
    same = len({*two, *one}) == 1
    print(f"\nthe same parameters, bit for bit: {'yes' if same else 'no'} {[*two, *one]}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
