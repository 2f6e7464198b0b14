"""What a run leaves behind on the host."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from flaxtrain.train import TrainState

__all__ = ["FitResult", "History"]

Row = dict[str, float]


@dataclass
class History:
    """The scalars of a run, as they were logged.

    Attributes:
        train: one dict per log point: `step` and the metrics of the window before it;
            `skipped`, the number of rejected steps so far, once there is one.
        val: one dict per evaluation.

    Example:
        >>> history = History(val=[{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.4}])
        >>> history.column("val", "loss")
        [0.5, 0.4]
    """

    train: list[Row] = field(default_factory=list)
    val: list[Row] = field(default_factory=list)

    def column(self, run: str, name: str) -> list[float]:
        """Returns one metric over the log points of `"train"` or `"val"` that have it."""
        return [row[name] for row in getattr(self, run) if name in row]

    @property
    def best(self) -> Row | None:
        """The row of `val` with the lowest loss, NaN counting as the highest; None without."""

        def loss(row: Row) -> float:
            value = row.get("loss", math.inf)
            return math.inf if math.isnan(value) else value

        return min(self.val, key=loss, default=None)

    def to_json(self) -> str:
        """Returns the history as JSON text."""
        return json.dumps({"train": self.train, "val": self.val})


@dataclass(frozen=True)
class FitResult:
    """What `Trainer.fit` returns.

    Attributes:
        state: the state after the last step.
        history: the scalars that were logged.
        timings: seconds: `total`, `compile` (the first step: tracing, compilation and run),
            `evaluate`, `features` (filling the cache of `cache_frozen`, if it was asked for),
            `train` (without these and without saving), `data_wait` (part of `train`); and
            `steps_per_sec` within `train`.
        stopped_because: `"finished"`, or the reason that a hook gave.
    """

    state: TrainState
    history: History
    timings: dict[str, float]
    stopped_because: str

    @property
    def best(self) -> Row | None:
        """The row of `history.val` with the lowest loss of the trained weights.

        Not of their average, `loss/ema`; None without evaluation.
        """
        return self.history.best
