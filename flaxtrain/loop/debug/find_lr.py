"""Which learning rate: the range test, in which it grows from step to step.

Smith 2015, arXiv:1506.01186, section 3.3. For the updates i = 0, 1, ..., n - 1:
    rate_i   = min (max / min)^(i / (n - 1))
    s_i      = b s_(i-1) + (1 - b) loss_i            smoothed_i = s_i / (1 - b^(i+1))
The test ends when smoothed_i exceeds four times the lowest one so far. Suggested is the rate at
which the smoothed loss falls most steeply over the logarithm of the rate. The average is late
by b / (1 - b) updates, the mean age of what is in it: the rate is that of so many steps before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_integer, check_number
from flaxtrain.data import HostBatch, Stream, prefetch
from flaxtrain.data.local_rows import rows_as_given
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError
from flaxtrain.loop.courses import course_of
from flaxtrain.loop.debug.lr_curve import LearningRateCurve, suggested
from flaxtrain.loop.debug.twin import check_lasting, recipe_of
from flaxtrain.loop.evaluation import checked
from flaxtrain.loop.in_flight import Bounded
from flaxtrain.loop.padding import checked_mask
from flaxtrain.loop.resume import begin
from flaxtrain.loop.step_programs import on_engine
from flaxtrain.loop.streams import on_devices, training_stream
from flaxtrain.parallel.engine import Engine
from flaxtrain.schedules import exponential_decay
from flaxtrain.spec import Lookahead, OptSpec
from flaxtrain.train import Recipe, TrainState, train_step
from flaxtrain.typing import ArrayLike, Batch

if TYPE_CHECKING:
    from flaxtrain.loop.trainer import Trainer

__all__ = ["find_learning_rate", "swept"]

_WHERE = "find_lr"

_DIVERGED = 4.0
"""How many times the lowest loss ends the test."""

_IDLE = 50
"""How many batches may make no step, for an overflow or want of weight, before it ends."""


def find_learning_rate(
    trainer: Trainer,
    ds: Any,
    *,
    lowest: float,
    highest: float,
    steps: int,
    smoothing: float,
    batch_size: int | None,
) -> LearningRateCurve:
    """Makes the range test; the trainer stays as it is.

    Args:
        trainer: the trainer; the test begins with its weights, or with those of a new run.
        ds: as for `fit`.
        lowest: the first rate.
        highest: the last rate.
        steps: number of updates.
        smoothing: of the moving average, in [0, 1).
        batch_size: as for `fit`.

    Raises:
        ArgumentError: an argument is out of range, or the optimizer's rate can't be set.
        DataError: the data set can be iterated once only.
    """
    check_number("min", lowest, minimum=0.0, exclude=(0.0,), where=_WHERE)
    check_number("max", highest, minimum=float(lowest), exclude=(float(lowest),), where=_WHERE)
    check_integer("steps", steps, minimum=10, where=_WHERE)
    check_number("smoothing", smoothing, minimum=0.0, maximum=1.0, exclude=(1.0,), where=_WHERE)
    check_lasting(ds, where=_WHERE)
    fitted = None if trainer.state is None or trainer.recipe is None else trainer.recipe
    spec = trainer.spec if fitted is None else fitted.spec
    stream, _ = training_stream(ds, batch_size, trainer.seed)
    count = spec.accumulation.count
    stream = on_devices(stream, trainer._devices, spec.accumulation.microbatches)
    rows = rows_as_given(stream)
    horizon = Horizon(steps * count, stream.batches_per_epoch, rows, count)
    growth = float(highest) / float(lowest)
    first = 0 if fitted is None else fitted.phase.start
    sweep = exponential_decay(float(lowest), steps - 1, growth, transition_begin=first)
    recipe = recipe_of(trainer, stream, horizon, spec=swept(spec, sweep, horizon)).at(first)
    engine = trainer._devices.engine(recipe.facts)
    if trainer.state is None:
        state = begin(recipe, stream, trainer.seed, None, trainer.init_from, engine).state
    else:
        state = engine.place_state(_with_weights(recipe, trainer.state))
    rates = float(lowest) * growth ** (np.arange(steps) / (steps - 1))
    found = _Losses(steps, float(smoothing))
    stopped = _sweep(recipe, engine, state, stream, found)
    rates, losses = rates[: len(found.smoothed)], np.array(found.losses)
    smoothed = np.array(found.smoothed)
    late = round(smoothing / (1 - smoothing))
    suggestion = suggested(rates, smoothed, late)
    return LearningRateCurve(rates, losses, smoothed, suggestion, stopped)


def swept(spec: OptSpec, sweep: Any, horizon: Horizon) -> OptSpec:
    """Returns a spec whose learning rates all follow a sweep.

    Groups keep what their rate is a multiple of: a rate of its own stays in proportion to the
    spec's, by the peaks of the two. Rates don't rise anew where parameters have thawed. No
    finite step is rejected: a loss that jumps is what the test looks for. An average of the
    weights stays only where it changes training.

    Args:
        spec: the spec.
        sweep: a schedule.
        horizon: against which durations of the schedules are resolved.

    Raises:
        ArgumentError: an optimizer is an object, or the spec's rate is zero.

    Example:
        >>> from flaxtrain.spec import Group
        >>> spec = OptSpec("sgd", 0.1, groups=[Group("head/**", learning_rate=0.5)])
        >>> swept(spec, exponential_decay(1e-3, 9, 1e3), Horizon(10)).groups
        (Group('head/**', lr_mult=5.0),)
    """
    if spec.name is None or any(spec.merged(group)[0].name is None for group in spec.groups):
        raise ArgumentError(
            "the optimizer is an object, which keeps its learning rate to itself",
            where=_WHERE,
            fix="pass the optimizer by name: OptSpec('adamw', learning_rate=...)",
        )
    resolved = spec.resolve(horizon)
    steps = horizon.updates or 1
    rate: Any = resolved.learning_rate
    peak = course_of(rate, steps).peak
    groups = []
    for given, group in zip(spec.groups, resolved.groups, strict=True):
        if group.learning_rate is None and group.schedule is None:
            groups.append(given)
            continue
        merged, factor = resolved.merged(group)
        rate = merged.learning_rate
        own = factor * course_of(rate, steps).peak
        if peak <= 0:
            raise ArgumentError(
                f"the learning rate is {peak}, so that of a group is no multiple of it",
                where=_WHERE,
                fix="give the spec the learning rate that most parameters should have",
            )
        groups.append(given.replace(learning_rate=None, schedule=None, lr_mult=own / peak))
    return spec.replace(
        learning_rate=sweep,
        groups=tuple(groups),
        freeze=tuple(rule.replace(rewarm=0) for rule in spec.freeze),
        spikes=None,
        ema=spec.ema if isinstance(spec.ema, Lookahead) else None,
    )


def _with_weights(recipe: Recipe, state: TrainState) -> TrainState:
    """Returns a state before the first update, with copies of the weights of another one."""
    params, collections = jax.tree.map(jnp.copy, (state.params, state.collections))
    new = recipe.state(params, collections, jnp.copy(state.rng))
    return new.replace(step=jnp.asarray(recipe.phase.start, jnp.int32))


@dataclass
class _Losses:
    """The losses of the updates so far; those of the batches of one update are averaged."""

    steps: int
    smoothing: float
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    _sum: float = 0.0
    _parts: list[float] = field(default_factory=list)

    def add(self, loss: float, *, ends: bool) -> str | None:
        """Takes the loss of one batch; returns why the test ends, if it does."""
        if not np.isfinite(loss):
            return "a step was rejected, or its loss was not finite"
        self._parts.append(loss)
        if not ends:
            return None
        self.losses.append(float(np.mean(self._parts)))
        self._parts = []
        b, count = self.smoothing, len(self.losses)
        self._sum = b * self._sum + (1 - b) * self.losses[-1]
        self.smoothed.append(self._sum / (1 - b**count))
        best = min(self.smoothed)
        # For losses below zero, as far above the lowest one.
        if self.smoothed[-1] > best + (_DIVERGED - 1) * abs(best):
            return f"the loss exceeded {_DIVERGED:g} times the lowest one"
        return "all steps were made" if count == self.steps else None


def _sweep(
    recipe: Recipe, engine: Engine, state: TrainState, stream: Stream, found: _Losses
) -> str:
    """Makes the updates; returns why they ended. The losses are read a few steps late."""
    on_all = on_engine(recipe, engine)

    def one(state: TrainState, batch: Batch, mask: ArrayLike | None) -> tuple[Any, Any]:
        new, metrics = train_step(on_all, state, batch, mask, norms=False)
        before, after = state.counters, new.counters
        rejected = after.skipped > before.skipped
        lowered = jnp.logical_not(jnp.asarray(state.loss_scale.at_minimum))
        overflow = (after.not_finite > before.not_finite) & lowered
        return new, (metrics["loss"].compute(), new.step > state.step, rejected, overflow)

    microbatches = recipe.spec.accumulation.microbatches
    step = engine.compiled_step(one, donate=(0,), rows=(1, 2), microbatches=microbatches)
    in_flight: Bounded[Any] = Bounded()
    idle_batches = 0
    for batch in prefetch(_endless(recipe, stream), step.place):
        state, told = step(state, batch.data, checked_mask(recipe, stream, batch))
        for oldest in in_flight.add(told):
            loss, ends, rejected, overflow = jax.device_get(oldest)
            # A lower scale is the answer to an overflow, and a batch without weight asks
            # nothing.
            idle = bool(overflow) or not (rejected or np.isfinite(loss))
            idle_batches += idle
            if idle and idle_batches <= _IDLE:
                continue
            stopped = found.add(float("nan") if rejected else float(loss), ends=bool(ends))
            if stopped is not None:
                return stopped
    raise AssertionError("the batches don't end")


def _endless(recipe: Recipe, stream: Stream) -> Iterator[HostBatch]:
    for epoch in itertools.count():
        yield from checked(recipe, stream.epoch(epoch), f"epoch {epoch}")
