"""How a training step is made, beside what the optimizer does."""

from __future__ import annotations

from dataclasses import dataclass

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentTypeError, BatchError
from flaxtrain.precision import UNSCALED, LossScale, NoScale

__all__ = ["StepOptions"]


@dataclass(frozen=True)
class StepOptions:
    """How a training step is made.

    Args:
        accumulate: number of microbatches, at least 1, that a batch is split into: consecutive
            rows, of whose activations one part is in memory. The gradient is that of the batch.
            BatchNorm's statistics and dropout's keys are those of a microbatch.
        loss_scale: what the loss is multiplied by while it is differentiated.

    Raises:
        ArgumentError: `accumulate` is less than 1.
        ArgumentTypeError: an argument has the wrong type.

    Example:
        >>> StepOptions(accumulate=4)
        StepOptions(accumulate=4, loss_scale=NoScale())
    """

    accumulate: int = 1
    loss_scale: LossScale = UNSCALED

    def __post_init__(self) -> None:
        check_integer("accumulate", self.accumulate, minimum=1, where="Trainer")
        object.__setattr__(self, "accumulate", int(self.accumulate))
        if isinstance(self.loss_scale, type) or not isinstance(self.loss_scale, LossScale):
            raise ArgumentTypeError(
                f"loss_scale={self.loss_scale!r} is a {type(self.loss_scale).__name__}, not a "
                "loss scale",
                where="Trainer",
                fix="pass ft.NoScale(), ft.FixedScale(2.0**15) or ft.DynamicScale()",
            )

    def describe(self, rows: int) -> str:
        """Returns what differs from a plain step, as text; empty where nothing does.

        Args:
            rows: of a batch.

        Example:
            >>> StepOptions(accumulate=4).describe(32)
            '4 microbatches of 8 rows each'
        """
        parts = []
        if self.accumulate > 1:
            parts.append(
                f"{self.accumulate} microbatches of {rows // self.accumulate} rows each"
            )
        if not isinstance(self.loss_scale, NoScale):
            parts.append(f"loss scale {self.loss_scale!r}")
        return "; ".join(parts)

    def check_rows(self, rows: int) -> None:
        """Refuses a number of rows that doesn't divide into microbatches.

        Raises:
            BatchError: it does not.
        """
        if rows % self.accumulate:
            raise BatchError(
                f"batches of {rows} rows do not divide into {self.accumulate} microbatches",
                where=f"accumulate={self.accumulate}",
                fix=f"choose a batch size that is a multiple of {self.accumulate}",
            )
