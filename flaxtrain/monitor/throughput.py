"""How fast a run goes, between one log point and the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flaxtrain.checks import check_integer, check_number

__all__ = ["Throughput"]


class Throughput:
    """Counts steps and examples against the clock, without the time spent on other things.

    With n steps, N examples, w seconds of waiting for data and p seconds paused in a window of
    T seconds: `steps_per_sec = n / (T - p)`, `examples_per_sec = N / (T - p)` and
    `data_wait_share = w / (T - p)`.

    Args:
        clock: seconds from any origin, never going backwards.

    Example:
        >>> now = [0.0]
        >>> throughput = Throughput(clock=lambda: now[0])
        >>> with throughput.waiting():
        ...     now[0] += 1.0                     # the next batch arrives
        >>> now[0] += 3.0                         # a step runs
        >>> throughput.step(examples=128)
        >>> with throughput.pause():
        ...     now[0] += 100.0                   # evaluation
        >>> throughput.window()
        {'steps_per_sec': 0.25, 'examples_per_sec': 32.0, 'data_wait_share': 0.25}
        >>> throughput.totals()
        {'train': 4.0, 'data_wait': 1.0}
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._depth = 0
        self._pause_began = 0.0
        self._train = self._wait = 0.0
        self._restart()

    def _restart(self) -> None:
        self._start = self._pause_began = self._clock()
        self._steps = self._examples = 0
        self._paused = self._waited = 0.0

    def step(self, examples: int = 0, steps: int = 1) -> None:
        """Counts finished steps and the examples in them, padding not included.

        Raises:
            ArgumentTypeError: a count is no integer.
            ArgumentError: a count is negative.
        """
        check_integer("examples", examples, minimum=0, where="Throughput.step")
        check_integer("steps", steps, minimum=0, where="Throughput.step")
        self._steps += int(steps)
        self._examples += int(examples)

    def waited(self, seconds: float) -> None:
        """Counts seconds that were spent waiting for data; in a pause they don't count.

        Raises:
            ArgumentError: `seconds` is negative.
        """
        check_number("seconds", seconds, minimum=0, where="Throughput.waited")
        if self._depth == 0:
            self._waited += seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data, pauses inside it excepted."""
        begin, paused = self._clock(), self._paused
        try:
            yield
        finally:
            self.waited(max(0.0, self._clock() - begin - (self._paused - paused)))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out: compilation, evaluation, saving. Pauses may be nested."""
        if self._depth == 0:
            self._pause_began = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._paused += self._clock() - self._pause_began

    def window(self) -> dict[str, float]:
        """Returns the rates since the last call (or since the start), and starts a new window.

        Returns:
            Scalars by tag; an empty dict if no step was counted or no time has passed.
        """
        seconds = self._active()
        steps, examples, waited = self._steps, self._examples, self._waited
        self._train += seconds
        self._wait += waited
        self._restart()
        if steps == 0 or seconds <= 0:
            return {}
        return {
            "steps_per_sec": steps / seconds,
            "examples_per_sec": examples / seconds,
            "data_wait_share": waited / seconds,
        }

    def totals(self) -> dict[str, float]:
        """Returns the seconds since the start without pauses, and those of waiting for data."""
        return {"train": self._train + self._active(), "data_wait": self._wait + self._waited}

    def _active(self) -> float:
        """Returns the seconds of this window that were not paused."""
        now = self._clock()
        pausing = now - self._pause_began if self._depth else 0.0
        return now - self._start - self._paused - pausing
