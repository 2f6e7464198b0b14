"""The part of the trainer that looks at a run before it is made, and leaves all as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flaxtrain.answering import answering_class
from flaxtrain.loop.debug.check import examine
from flaxtrain.loop.debug.check_report import CheckReport
from flaxtrain.loop.debug.find_lr import find_learning_rate
from flaxtrain.loop.debug.lr_curve import LearningRateCurve
from flaxtrain.parallel import peer_watch

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["Debuggable"]


@answering_class()
class Debuggable:
    """What a `Trainer` can find out before it trains."""

    def check(self, ds: Any, *, batch_size: int | None = None) -> CheckReport:
        """Looks for what usually goes wrong, on one batch; nothing is trained or changed.

        It looks for

        - labels that the model can't predict;
        - a first loss far from that of guessing: above ln C + 2 or below half of ln C for C
          classes, a tenth or ten times the variance of the targets for a squared error;
        - a loss or gradients that are not finite;
        - trained parameters without any gradient;
        - outputs that depend on other rows of the batch (BatchNorm's in training are expected
          to);
        - evaluations that differ from one another, with the order of rows, or with padding.

        Args:
            ds: as for `fit`; its first batch is looked at, with the values that a run begins
                with. Not an iterator: it would be used up.
            batch_size: for arrays only; default 128.

        Returns:
            A report; print it, or ask it for `ok` and `findings`.

        Raises:
            FlaxtrainError: what would keep `fit` from its first step.

        Example:
            >>> import numpy as np, flax.linen as nn, flaxtrain as ft
            >>> x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
            >>> trainer = ft.Trainer(nn.Dense(3), ft.OptSpec("sgd", learning_rate=0.1))
            >>> trainer.check({"x": x, "label": np.arange(8) % 3}).ok
            True
            >>> report = trainer.check({"x": x, "label": np.arange(8)})
            >>> [finding.check for finding in report.findings]
            ['labels']
        """
        with peer_watch().guard():
            return examine(cast("Trainer", self), ds, batch_size)

    def find_lr(
        self,
        ds: Any,
        *,
        min: float = 1e-7,
        max: float = 10.0,
        steps: int = 100,
        smoothing: float = 0.9,
        batch_size: int | None = None,
    ) -> LearningRateCurve:
        """Makes a range test of the learning rate, on copies; the trainer stays as it is.

        The rate grows exponentially from `min` to `max`, until the smoothed loss is four times
        its lowest value (Smith 2015, arXiv:1506.01186, section 3.3). It begins with the
        trainer's weights, or with those of a new run, and with fresh slots. Factors of groups
        and layers hold; what is frozen at first stays so.

        Args:
            ds: as for `fit`; the batches come in its order. Not an iterator: it would be used
                up.
            min: the first rate, > 0.
            max: the last rate, > `min`.
            steps: number of updates, at least 10.
            smoothing: of the moving average of the loss, in [0, 1).
            batch_size: for arrays only; default 128.

        Returns:
            The curve with its `suggestion`, the rate of the steepest descent. Print it, or
            `plot` it as an SVG picture.

        Raises:
            ArgumentError: an argument is out of range, or the optimizer is an object, whose
                rate is not known.

        Example:
            >>> import numpy as np, flax.linen as nn, flaxtrain as ft
            >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
            >>> data = {"x": x, "label": (x[:, 0] > 0).astype("int32")}
            >>> trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", learning_rate=0.1))
            >>> curve = trainer.find_lr(data, min=1e-4, max=1e3, steps=50)
            >>> 1e-2 < curve.suggestion < 10, trainer.state is None
            (True, True)
        """
        with peer_watch().guard():
            return find_learning_rate(
                cast("Trainer", self),
                ds,
                lowest=min,
                highest=max,
                steps=steps,
                smoothing=smoothing,
                batch_size=batch_size,
            )
