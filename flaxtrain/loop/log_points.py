"""The windows of metrics of a run: ended at log points, read a little late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from flaxtrain.loop.step_programs import TrainProgram
from flaxtrain.loop.window import Report, Status
from flaxtrain.parallel.engine import Engine
from flaxtrain.typing import Array

__all__ = ["LogPoints"]


class LogPoints:
    """The window that is being filled, and those that are still on the device.

    Args:
        first_step: number of updates before the first step.
        engine: where the steps run.

    Attributes:
        window: the metrics since the last log point; None before the first step of a phase.
    """

    def __init__(self, first_step: int, engine: Engine) -> None:
        self.window: Any = None
        # Placed as those that follow, which lie elsewhere for the compiler if they don't.
        self._closed_at = engine.place_state(jnp.asarray(first_step, jnp.int32))
        self._closed_behind: int | None = None
        self._pending: deque[tuple[int, Report]] = deque()
        self._skipped = 0

    def close(self, program: TrainProgram, batches: int, status: Array | None) -> None:
        """Ends the window; its values are read when they are sure to be there.

        Args:
            program: whose window it is.
            batches: number of batches in the run so far.
            status: where the device is after the last one; None before the first step.
        """
        if self.window is None or status is None or batches == self._closed_behind:
            return
        self._closed_behind = batches
        values, weighted, self.window, self._closed_at = program.finish(
            self.window, status, self._closed_at
        )
        self._pending.append((batches, Report(values, weighted, status)))

    def finished(self, batches: int | None) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields the step and the metrics of each window that has something to say.

        Args:
            batches: number of batches whose steps are surely finished; None: waits for all.
        """
        while self._pending and (batches is None or self._pending[0][0] <= batches):
            _, report = self._pending.popleft()
            status, metrics = report.collect()
            if metrics or status.skipped > self._skipped:
                yield status.step, {**metrics, **self._rejected(status)}

    def _rejected(self, status: Status) -> dict[str, float]:
        self._skipped = status.skipped
        return status.rejected()
