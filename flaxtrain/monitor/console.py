"""One plain line per log window, for terminals, log files and notebooks alike."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TextIO

from flaxtrain.checks import check_integer
from flaxtrain.monitor.host import as_floats, check_step
from flaxtrain.monitor.writer import Arrays, NullWriter

__all__ = ["ConsoleWriter"]

_RATES = ("steps_per_sec", "examples_per_sec", "data_wait_share")


class ConsoleWriter(NullWriter):
    """Prints scalars, with progress and the time that is left:

        train    100/570  18%  loss 0.4321  learning_rate 1.0e-03  61.2 steps/s  eta 0:08
        val      100/570  18%  loss 0.3990  accuracy 0.8810

    The speed is the scalar `steps_per_sec` where there is one (see `Throughput`, which leaves
    out compilation and evaluation), and otherwise measured from one line of a run to the next;
    the first line then has none. Images, histograms, hyperparameters and such are not printed.

    Args:
        stream: where to print; default `sys.stdout`, looked up at every line.
        total_steps: the step at which training ends; without it no percentage and no eta.
        clock: seconds from any origin, never going backwards.
        run: the first word of each line; `train` lines tell the speed.
        tags: print these scalars only, in this order. Default: all whose tag has no `/`.
        texts: print texts too.

    Raises:
        ArgumentError: `total_steps` is negative.

    Example:
        >>> console = ConsoleWriter(total_steps=570)
        >>> console.write_scalars(100, {"loss": 0.43214, "steps_per_sec": 61.2})
        train    100/570  18%  loss 0.4321  61.2 steps/s  eta 0:08
        >>> console.write_scalars(100, {"loss": 0.399, "accuracy": 0.881}, run="val")
        val      100/570  18%  loss 0.3990  accuracy 0.8810
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        total_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        run: str = "train",
        tags: Collection[str] | None = None,
        texts: bool = False,
    ) -> None:
        super().__init__()
        if total_steps is not None:
            check_integer("total_steps", total_steps, minimum=0, where="ConsoleWriter")
        self.stream, self.total_steps, self.run = stream, total_steps, run
        self._clock, self._tags, self._texts = clock, tags, texts
        self._last: dict[str, tuple[int, float]] = {}

    def write_scalars(self, step: int, scalars: Arrays, *, run: str | None = None) -> None:
        """Prints one line.

        Args:
            step: number of updates applied.
            scalars: one real number per tag.
            run: the first word, if another than the writer's own.
        """
        step, run = check_step(step), run or self.run
        values = as_floats(scalars)
        parts = [f"{tag} {_number(values[tag])}" for tag in self._chosen(values)]
        rate = values.get("steps_per_sec", self._measured(step, run))
        # Lines of other runs tell results; how fast training goes is on its own lines.
        if rate is not None and rate > 0 and run == "train":
            parts.append(f"{rate:.3g} steps/s")
            if self.total_steps is not None and step < self.total_steps:
                parts.append(f"eta {_duration((self.total_steps - step) / rate)}")
        self.write_line("  ".join([f"{run:<6} {self._progress(step)}", *parts]))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Prints each text under a heading, if the writer was made with `texts=True`."""
        if self._texts:
            for tag, text in texts.items():
                self.write_line(
                    f"{self.run:<6} {self._progress(check_step(step))}  {tag}\n{text}"
                )

    def write_line(self, line: str) -> None:
        """Prints a line as it is."""
        stream = self.stream or sys.stdout
        stream.write(line + "\n")
        stream.flush()

    def flush(self) -> None:
        """Flushes the stream."""
        (self.stream or sys.stdout).flush()

    def _chosen(self, values: Mapping[str, Any]) -> list[str]:
        if self._tags is not None:
            return [tag for tag in self._tags if tag in values]
        return [tag for tag in values if "/" not in tag and tag not in _RATES]

    def _measured(self, step: int, run: str) -> float | None:
        now = self._clock()
        before, then = self._last.get(run, (step, now))
        self._last[run] = step, now
        return (step - before) / (now - then) if step > before and now > then else None

    def _progress(self, step: int) -> str:
        if self.total_steps is None:
            return f"{step:>5}"
        total = str(self.total_steps)
        share = (
            100 if step >= self.total_steps else min(99, round(100 * step / self.total_steps))
        )
        return f"{step:>{max(5, len(total))}}/{total} {share:>3}%"


def _number(value: float) -> str:
    """Four decimals in the middle range, integers as such, and powers of ten outside it."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e4 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
