"""Which finite steps are rejected all the same, because a value is far above the usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flaxtrain.answering import answering
from flaxtrain.checks import INT32_MAX, check_choice, check_integer, check_number
from flaxtrain.durations import DurationLike, Horizon, parse, to_batches, to_steps
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.spec.declaration import Declaration, plain
from flaxtrain.text import kind_of

__all__ = ["SPIKE_VALUES", "Spikes", "check_skips"]

SPIKE_VALUES = ("grad_norm", "loss")
"""What a rule can look at."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Spikes(Declaration):
    """Rejects a step whose gradient norm, or loss, is far above the usual.

    With the values w of the last accepted batches, m = median(w) and the robust standard
    deviation s = 1.4826 median(abs(w - m)), which for normally distributed values is the
    standard deviation, a batch of value v is rejected where `v - m > z s`. Where s is 0,
    because most values are equal, none is.

    A rejected step changes nothing, and its value does not enter the window. So values that
    stay high are rejected again and again, and `OptSpec(max_skips=)` ends the run.

    Args:
        z: number of robust standard deviations above the median, more than 0.
        window: number of accepted values that are kept, at least 3.
        of: `"grad_norm"`, the norm of the gradient before clipping, or `"loss"`.
        warmup: number of accepted batches before the first one is judged, at least 3, or a
            duration such as `"2%"`; None: as many as the window takes.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: `of` is another word.

    Example:
        >>> Spikes(window=64)
        Spikes(window=64)
        >>> Spikes(warmup="5%").resolve(Horizon(batches=1000)).first_judged
        50
    """

    z: float
    window: int
    of: Literal["grad_norm", "loss"]
    warmup: DurationLike | None

    @answering
    def __init__(
        self,
        z: float = 6.0,
        *,
        window: int = 128,
        of: Literal["grad_norm", "loss"] = "grad_norm",
        warmup: DurationLike | None = None,
    ) -> None:
        where = "Spikes"
        check_number("z", z, minimum=0.0, exclude=(0.0,), where=where)
        check_integer("window", window, minimum=3, where=where)
        check_choice("of", of, SPIKE_VALUES, where=where)
        if warmup is not None and not parse(warmup, where=f"{where}: warmup").is_relative:
            check_integer("warmup", to_steps(warmup, Horizon()), minimum=3, where=where)
        self._set(z=float(z), window=int(window), of=of, warmup=plain(warmup))

    @property
    def first_judged(self) -> int:
        """The number of accepted batches after which the first one is judged.

        Raises:
            ArgumentError: `warmup` is relative, and not resolved yet.
        """
        warmup = self.window if self.warmup is None else self.warmup
        return to_steps(warmup, Horizon(), where="Spikes: warmup")

    def resolve(self, horizon: Horizon) -> Spikes:
        """Returns the rule with its warm-up in batches, at least 3.

        Raises:
            ArgumentError: `horizon` lacks a number that the duration needs.
        """
        if self.warmup is None:
            return self
        warmup = to_batches(self.warmup, horizon, where="Spikes: warmup")
        return self.replace(warmup=max(3, warmup))


def check_skips(max_skips: Any, spikes: Any, *, where: str) -> None:
    """Refuses what `OptSpec` can't take for `max_skips` and `spikes`.

    Raises:
        ArgumentError: `max_skips` is less than 1, or no int32.
        ArgumentTypeError: one of them has the wrong type.
    """
    if max_skips is not None:
        check_integer("max_skips", max_skips, minimum=1, maximum=INT32_MAX, where=where)
    if spikes is not None and not isinstance(spikes, Spikes):
        raise ArgumentTypeError(
            f"spikes={spikes!r} is {kind_of(spikes)}, not a rule",
            where=where,
            fix="pass spikes=ft.Spikes(z=6.0), or None for no rule",
        )
