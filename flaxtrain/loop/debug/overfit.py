"""Learning one batch by heart: whether data, loss, gradient and update go together at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from flaxtrain.data import batches
from flaxtrain.errors import DebugError
from flaxtrain.loop.arguments import FitCall
from flaxtrain.loop.debug.few_batches import sample_of
from flaxtrain.loop.debug.twin import say, twin_of
from flaxtrain.loop.hooks import Hook
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.run import Run
from flaxtrain.loop.streams import training_stream
from flaxtrain.text import counted
from flaxtrain.train import Recipe

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["LearntByHeart", "overfit"]

UPDATES = 200
"""How many are made of the batch, where nobody says how many steps."""

_NEAR_ZERO = 0.01
"""Of the loss of the first step: what counts as learnt."""

_RIGHT, _HALF = 10, 0.5
"""Or so many successive steps with every label right, and a loss below this share of the first
one: with dropout or label smoothing the loss itself may never come near zero."""


class LearntByHeart(Hook):
    """Stops a run when its batch is learnt; it needs a log point at every step.

    Attributes:
        losses: the loss of each step.
        accuracy: the last accuracy, where there is such a metric.
        learnt: whether it was stopped.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.accuracy: float | None = None
        self.learnt = False
        self._right = 0

    @property
    def share(self) -> float:
        """The last loss, as a share of the first."""
        return self.losses[-1] / self.losses[0]

    def on_log(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Judges one step."""
        if "loss" not in metrics:  # a rejected step
            return
        self.losses.append(metrics["loss"])
        self.accuracy = metrics.get("accuracy")
        self._right = self._right + 1 if self.accuracy == 1.0 else 0
        if self.losses[0] <= 0:
            raise DebugError(
                f"the loss begins at {self.losses[0]:.4g}, so it has no way to zero",
                where="fit(debug='overfit')",
                fix="use a loss that is positive, with its lowest value near zero",
            )
        learnt = self.share < _NEAR_ZERO or (self._right >= _RIGHT and self.share < _HALF)
        if learnt and not self.learnt:
            self.learnt = True
            run.stop("the batch is learnt")


def overfit(trainer: Trainer, call: FitCall) -> FitResult:
    """Trains on the first batch alone, in order, until its loss is near zero.

    Args:
        trainer: the trainer, which stays as it is.
        call: the arguments of `fit`; only `ds`, `batch_size` and `steps` (default: as many
            batches as make 200 updates) are looked at.

    Raises:
        DebugError: the loss does not get there; the message says how far it got, and what may
            be the cause.
    """
    hook = LearntByHeart()
    silent = twin_of(trainer, hooks=(hook,), log_every=1, workdir=None, verbose=False)
    stream, _ = training_stream(call.ds, call.batch_size, silent.seed)
    data = sample_of(stream, silent.spec.accumulation.microbatches)
    rows = jax.tree.leaves(data)[0].shape[0]
    steps = UPDATES * silent.spec.accumulation.count if call.steps is None else call.steps
    result = silent.fit(batches(data, rows), steps=steps)
    assert silent.recipe is not None
    if not hook.learnt:
        raise _not_learnt(hook, silent.recipe, result, steps)
    say(trainer, f"debug='overfit': {_course(hook)}; nothing of it is kept")
    return result


def _course(hook: LearntByHeart) -> str:
    if not hook.losses:
        return "no step was accepted"
    right = "" if hook.accuracy is None else f", accuracy {hook.accuracy:.3g}"
    return (
        f"on one batch the loss went from {hook.losses[0]:.4g} to {hook.losses[-1]:.4g}, "
        f"{hook.share:.2%} of the first, in {counted(len(hook.losses), 'step')}{right}"
    )


def _not_learnt(
    hook: LearntByHeart, recipe: Recipe, result: FitResult, steps: int
) -> DebugError:
    return DebugError(
        f"{_course(hook)}; below {_NEAR_ZERO:.0%} was wanted",
        where="fit(debug='overfit')",
        fix="look for " + "; ".join(_causes(hook, recipe, result, steps)),
    )


def _causes(
    hook: LearntByHeart, recipe: Recipe, result: FitResult, steps: int
) -> Iterator[str]:
    """Yields what may be the cause, what is seen in this run first."""
    skipped = int(result.state.counters.skipped)
    if skipped:
        yield f"NaN or overflow (rejected: {counted(skipped, 'step')})"
    rates = [
        f"{name} {float(rate):.3g}"
        for name, rate in result.state.learning_rates.items()
        if rate is not None
    ]
    seen = f" (the last one: {', '.join(rates)})" if rates else ""
    recent = hook.losses[-1 - len(hook.losses) // 4 :]
    if recent and recent[-1] > 1.5 * min(hook.losses):
        yield f"a learning rate that is too high{seen}: the loss has been lower"
    elif recent and recent[-1] < 0.9 * recent[0]:
        yield f"too few steps or too low a learning rate{seen}: the loss is still falling"
    else:
        yield f"the learning rate{seen}"
    frozen = recipe.facts.size - sum(recipe.facts[path].size for path in recipe.phase.trained)
    if frozen:
        yield f"too much that is frozen ({frozen:,} of {recipe.facts.size:,} values)"
    if recipe.facts.rng_streams - {"params"}:
        yield (
            "dropout or other noise in training "
            f"(random streams: {', '.join(sorted(recipe.facts.rng_streams - {'params'}))})"
        )
    yield "equal inputs with different targets"
    yield "inputs that do not reach the output (trainer.check(ds) says which parameters do)"
