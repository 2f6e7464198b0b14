"""Averages of the weights along a run, as data: which one, from when on, how often.

With x_s the trained weights after s optimizer updates:

- `Ema`, an exponential moving average: `average <- average + (1 - d) (x_s - average)`. Averages
  of iterates are due to Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
  averaging"; theirs is the mean.
- `Swa`, stochastic weight averaging: the mean of the x_s from some step on (Izmailov et al.
  2018, arXiv:1803.05407, Algorithm 1)
- `Lookahead`: slow weights that follow the trained ones, which start again from there (Zhang et
  al. 2019, arXiv:1907.08610, Algorithm 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from flaxtrain.answering import answering
from flaxtrain.checks import check_flag, check_integer, check_number
from flaxtrain.durations import DurationLike, Horizon, parse, to_steps
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.spec.declaration import Declaration, plain
from flaxtrain.text import counted, kind_of

__all__ = ["Ema", "Lookahead", "Swa"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Ema(Declaration):
    """Averages the weights exponentially; the last ones count most.

    It begins as the weights that training begins with, and after every optimizer update of
    which the number s is a multiple of `every` it moves towards the trained weights x:
    `average <- average + (1 - d) (x_s - average)`. So after n such updates, without warm-up, it
    is `decay^n x_0 + (1 - decay) sum_i decay^(n - i) x_i`, over i = 1 to n.

    Args:
        decay: what remains of the average after one update of it, in [0, 1).
        warmup: whether the decay rises from 0.1 to its value: then the update of the average
            number t, from 0, has `d = min(decay, (1 + t) / (10 + t))`, the form of TensorFlow's
            `ExponentialMovingAverage(num_updates=)`. Without it the weights that training
            begins with are in the average for `1 / (1 - decay)` updates or so. It is no
            duration: its length, `9 / (1 - decay)` updates or so, follows from the decay.
        every: optimizer updates between two updates of the average, at least 1, or a duration.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> Ema(0.99, every=10)
        Ema(0.99, every=10)
        >>> Ema(every="1%").resolve(Horizon(batches=2000)).every
        20
    """

    decay: float
    warmup: bool
    every: DurationLike

    @answering
    def __init__(
        self, decay: float = 0.999, *, warmup: bool = True, every: DurationLike = 1
    ) -> None:
        check_number("decay", decay, minimum=0.0, maximum=1.0, exclude=(1.0,), where="Ema")
        check_flag("warmup", warmup, where="Ema")
        _check_every(every, where="Ema")
        self._set(decay=float(decay), warmup=bool(warmup), every=plain(every))

    @property
    def first_update(self) -> int:
        """The optimizer update after which the average is formed first; durations in steps."""
        return to_steps(self.every, Horizon(), where="Ema")

    def resolve(self, horizon: Horizon) -> Ema:
        """Returns the average with its durations in steps.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs.
        """
        return self.replace(every=to_steps(self.every, horizon, where="Ema: every"))

    def describe(self) -> str:
        """Returns what is averaged, in words.

        Example:
            >>> Ema(0.99, every=10).describe()
            'exponential moving average with decay 0.99 after warm-up, every 10 updates'
        """
        after = " after warm-up" if self.warmup else ""
        average = f"exponential moving average with decay {self.decay:g}{after}"
        return f"{average}, {_times(self.every)}"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Swa(Declaration):
    """Averages the weights evenly from some step on: stochastic weight averaging.

    The mean of x_s for s = start, start + every, ...; s is the number of optimizer updates, and
    at least 1. Before the first of them there is no average. Statistics of BatchNorm are
    averaged too, which is not what the averaged weights have: `Trainer.recompute_batch_stats`
    forms theirs.

    Args:
        start: the number of updates after which the first weights are taken.
        every: optimizer updates from there to the next ones, at least 1, or a duration. The
            paper takes the weights once per epoch: `"1ep"`.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> Swa("90%", every="1ep").resolve(Horizon(batches=500, batches_per_epoch=25))
        Swa(450, every=25)
    """

    start: DurationLike
    every: DurationLike

    @answering
    def __init__(self, start: DurationLike = "75%", *, every: DurationLike = 1) -> None:
        parse(start, where="Swa: start")
        _check_every(every, where="Swa")
        self._set(start=plain(start), every=plain(every))

    @property
    def first_update(self) -> int:
        """The optimizer update after which the average is formed first; durations in steps."""
        start, every = (to_steps(n, Horizon(), where="Swa") for n in (self.start, self.every))
        return start or every

    def resolve(self, horizon: Horizon) -> Swa:
        """Returns the average with its durations in steps.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs.
        """
        return self.replace(
            start=to_steps(self.start, horizon, where="Swa: start"),
            every=to_steps(self.every, horizon, where="Swa: every"),
        )

    def describe(self) -> str:
        """Returns what is averaged, in words.

        Example:
            >>> Swa(450, every=25).describe()
            'mean from step 450 on, every 25 updates'
        """
        return f"mean from step {self.start} on, {_times(self.every)}"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Lookahead(Declaration):
    """Lets slow weights follow the trained ones, which start again from there.

    After each `sync_period` optimizer updates, with fast weights theta and slow weights phi:
    `phi <- phi + slow_step_size (theta - phi)`, then `theta <- phi`. Of the three averages it
    is the only one that changes training. The slow weights are those to evaluate; they have no
    batch statistics of their own.

    Args:
        sync_period: updates k between two moves of the slow weights, at least 1.
        slow_step_size: step size alpha of the slow weights, in (0, 1].

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> Lookahead(5, slow_step_size=0.8)
        Lookahead(5, slow_step_size=0.8)
    """

    sync_period: int
    slow_step_size: float

    @answering
    def __init__(self, sync_period: int = 6, slow_step_size: float = 0.5) -> None:
        where = "Lookahead"
        check_integer("sync_period", sync_period, minimum=1, where=where)
        check_number(
            "slow_step_size",
            slow_step_size,
            minimum=0.0,
            maximum=1.0,
            exclude=(0.0,),
            where=where,
        )
        self._set(sync_period=int(sync_period), slow_step_size=float(slow_step_size))

    @property
    def first_update(self) -> int:
        """The optimizer update after which the slow weights move first."""
        return self.sync_period

    def describe(self) -> str:
        """Returns what is averaged, in words.

        Example:
            >>> Lookahead().describe()
            'lookahead with step size 0.5, every 6 updates'
        """
        how = f"lookahead with step size {self.slow_step_size:g}"
        return f"{how}, {_times(self.sync_period)}"


Averaging: TypeAlias = Ema | Swa | Lookahead
"""Which average of the weights a run keeps."""


def as_averaging(ema: Any, *, where: str) -> Averaging | None:
    """Returns the argument `ema` of a spec in its long form; None where there is no average.

    Raises:
        ArgumentError: a decay out of range.
        ArgumentTypeError: something else than a number or an average.

    Example:
        >>> as_averaging(0.99, where="OptSpec")
        Ema(0.99)
    """
    ema = plain(ema)
    if ema is None or isinstance(ema, (Ema, Swa, Lookahead)):
        return ema
    if isinstance(ema, bool) or not isinstance(ema, (int, float)):
        raise ArgumentTypeError(
            f"ema={ema!r} is {kind_of(ema)}, not an average",
            where=where,
            fix="pass the decay of a moving average, ft.Ema(...), ft.Swa(...) or "
            "ft.Lookahead(...)",
        )
    try:
        return Ema(ema)
    except ArgumentError as error:
        raise ArgumentError(f"ema={ema}: {error.found}", where=where, fix=error.fix) from None


def describe_average(ema: Averaging | None) -> str:
    """Returns what is averaged, in words; empty where nothing is.

    Example:
        >>> describe_average(Swa(75))
        'weights averaged: mean from step 75 on, every update'
    """
    return "" if ema is None else f"weights averaged: {ema.describe()}"


def _check_every(every: Any, *, where: str) -> None:
    if parse(every, where=f"{where}: every").amount == 0:
        raise ArgumentError(
            f"every={every!r} is no period", where=where, fix="pass at least one step"
        )


def _times(every: DurationLike) -> str:
    if every == 1:
        return "every update"
    return f"every {counted(every, 'update') if isinstance(every, int) else every}"
