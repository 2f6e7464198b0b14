"""Compare contenders by interleaved timing: the ratio is measured, never the absolute time.

A shared machine changes speed from second to second, so two numbers taken one after the other
compare two moments rather than two programs. Here all contenders run in one process. In each
round every contender runs one block per length; the order rotates from round to round and turns
round every time, so that nobody always runs first or always after the same neighbour; and only
the ratio between two contenders *of the same round* is used. The score is the median of these
ratios over the rounds, with the 10th and 90th percentile.

A second instance of the baseline (the A/A control) runs in the same rounds: its spread around 1
is what the machine does to two equal programs, and no difference inside it means anything.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Contender:
    """A name, and a function that runs so many steps and returns when all results are ready."""

    name: str
    run: Callable[[int], object]


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile and minimum of paired ratios (no unit)."""

    median: float
    p10: float
    p90: float
    least: float

    def __str__(self) -> str:
        return f"{self.median:6.3f}  [{self.p10:.3f} {self.p90:.3f}]"


@dataclass(frozen=True)
class Timings:
    """Seconds of every block.

    Args:
        names: The contenders.
        lengths: Steps per block, ascending.
        seconds: `[rounds, contenders, lengths]`, seconds per block.

    Example:
        >>> timings = Timings(("a", "b"), (1, 3), np.array([[[2.0, 4.0], [3.0, 8.0]]]))
        >>> timings.call("b"), timings.slope("b"), timings.fixed("b")
        (array([8.]), array([2.5]), array([0.5]))
        >>> timings.ratio("b", "a").median, timings.ratio("b", "a", timings.slope).median
        (2.0, 2.5)
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    seconds: NDArray[np.float64]

    def call(self, name: str) -> NDArray[np.float64]:
        """Return the seconds of each whole call of the longest length: `[rounds]`."""
        return self.seconds[:, self.names.index(name), -1]

    def short_call(self, name: str) -> NDArray[np.float64]:
        """Return the seconds of each whole call of the shortest length: `[rounds]`."""
        return self.seconds[:, self.names.index(name), 0]

    def slope(self, name: str) -> NDArray[np.float64]:
        """Return the seconds of one further step, `(long - short) / steps`: `[rounds]`."""
        return (self.call(name) - self.short_call(name)) / (self.lengths[-1] - self.lengths[0])

    def fixed(self, name: str) -> NDArray[np.float64]:
        """Return the seconds that a call costs whatever its length: `[rounds]`."""
        return self.short_call(name) - self.slope(name) * self.lengths[0]

    def ratio(
        self,
        name: str,
        over: str,
        measure: Callable[[str], NDArray[np.float64]] | None = None,
    ) -> Spread:
        """Return the spread of the paired per-round ratios of one contender over another."""
        of = self.call if measure is None else measure
        ratios = of(name) / of(over)
        p10, median, p90 = (float(q) for q in np.percentile(ratios, (10, 50, 90)))
        return Spread(median, p10, p90, float(ratios.min()))


def interleave(
    contenders: Sequence[Contender],
    lengths: Sequence[int],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time blocks of every contender in rounds, in an order that rotates.

    Garbage is collected before each block, outside the timed part, so that nobody pays for the
    leavings of the one before. Contenders are to be warm (compiled) already.

    Args:
        contenders: What to compare; the names must differ.
        lengths: Steps per block, ascending; two lengths make the cost per step separable
            from the cost per call.
        rounds: How many rounds.
        clock: Returns seconds.

    Returns:
        The seconds of every block.

    Raises:
        ValueError: If names repeat or lengths do not ascend.

    Example:
        >>> now = [0.0]
        >>> def work(cost): return lambda steps: now.__setitem__(0, now[0] + 1.0 + cost * steps)
        >>> slow, fast = Contender("slow", work(3.0)), Contender("fast", work(2.0))
        >>> timings = interleave([slow, fast], (1, 2), 5, clock=lambda: now[0])
        >>> timings.ratio("slow", "fast", timings.slope).median, timings.fixed("slow")[0]
        (1.5, np.float64(1.0))
    """
    names = tuple(contender.name for contender in contenders)
    if len(set(names)) != len(names) or list(lengths) != sorted(set(lengths)):
        raise ValueError(f"names {names} must differ and lengths {tuple(lengths)} ascend")
    seconds = np.zeros((rounds, len(contenders), len(lengths)))
    for number in range(rounds):
        for place in range(len(contenders)):
            which = (place * (-1) ** number + number) % len(contenders)
            for column, steps in enumerate(lengths):
                gc.collect()
                start = clock()
                contenders[which].run(steps)
                seconds[number, which, column] = clock() - start
    return Timings(names, tuple(lengths), seconds)


def limit(control: Spread, target: float) -> float:
    """Return the largest ratio that passes: the target, or the A/A control's upper spread."""
    return max(target, control.p90)


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the machine and the software, for the report.

    Args:
        packages: Names of the distributions whose versions matter.

    Returns:
        Versions by name, the number of cores and the load average of the last minute.
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[0], 2),
    }
