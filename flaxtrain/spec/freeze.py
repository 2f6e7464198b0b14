"""Which parameters are not trained, from when to when, and what their modules do meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flaxtrain.answering import answering
from flaxtrain.checks import check_choice
from flaxtrain.durations import DurationLike, Horizon, parse, to_steps
from flaxtrain.errors import ArgumentError
from flaxtrain.params import SelectorLike
from flaxtrain.spec.declaration import Declaration, as_choice, plain

__all__ = ["Freeze"]

STATS = ("hold", "update")
MODES = ("eval", "train")
SLOTS = ("drop", "keep")
ORDERS = ("top_down", "bottom_up")
DURATIONS = ("start", "until", "every", "rewarm")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Freeze(Declaration):
    """Keeps parameters as they are: no gradient, no slots, no decay, no part in any norm.

    Durations count optimizer updates: `500`, `"2ep"`, `"5%"`. With `every`, the selection thaws
    layer by layer: the topmost layer at `until`, the next one `every` later, and so on.

    Args:
        select: which parameters, see `Selector`.
        until: when training of them begins; None: never.
        start: when freezing begins; the default is the beginning of the run.
        every: with `until`, the time between the thawing of two layers (see
            `flaxtrain.params.layers`); None: all at once. Arrays that are stacks of layers
            (`nn.scan`) thaw whole, with their topmost layer.
        order: the layer that thaws first: `"top_down"` or `"bottom_up"`.
        stats: running statistics of the modules that are frozen whole: `"hold"` them, or
            `"update"` them as in training.
        mode: whether those modules run as in evaluation (`"eval"`: no dropout, normalisation
            by held statistics) or as in training (`"train"`).
        slots: for a freeze that starts within the run: whether the optimizer's slots are
            dropped, or kept for the time after. It has to be said then. An optimizer object
            can't keep them, and what thaws beside others of one object is refused: it needs a
            group of its own.
        rewarm: after thawing, the learning rate of these parameters rises linearly to its value
            for so long.

    Raises:
        ArgumentError: a duration is malformed, or arguments contradict each other.
        UnknownNameError: a choice is not known.

    Example:
        >>> Freeze("backbone/**", until="2ep")
        Freeze('backbone/**', until='2ep')
        >>> Freeze("backbone/**", until="2ep").resolve(Horizon(batches_per_epoch=30)).until
        60
    """

    select: SelectorLike
    until: DurationLike | None
    start: DurationLike
    every: DurationLike | None
    order: Literal["top_down", "bottom_up"]
    stats: Literal["hold", "update"]
    mode: Literal["eval", "train"]
    slots: Literal["drop", "keep"] | None
    rewarm: DurationLike

    @answering
    def __init__(
        self,
        select: SelectorLike,
        until: DurationLike | None = None,
        *,
        start: DurationLike = 0,
        every: DurationLike | None = None,
        order: Literal["top_down", "bottom_up"] = "top_down",
        stats: Literal["hold", "update"] = "hold",
        mode: Literal["eval", "train"] = "eval",
        slots: Literal["drop", "keep"] | None = None,
        rewarm: DurationLike = 0,
    ) -> None:
        where = f"Freeze({select!r})"
        select = as_choice(select, where=where)
        check_choice("order", order, ORDERS, where=where)
        check_choice("stats", stats, STATS, where=where)
        check_choice("mode", mode, MODES, where=where)
        if slots is not None:
            check_choice("slots", slots, SLOTS, where=where)
        for name, value in (("start", start), ("rewarm", rewarm)):
            parse(value, where=f"{where}: {name}")
        for name, value in (("until", until), ("every", every)):
            if value is not None and parse(value, where=f"{where}: {name}").amount == 0:
                raise ArgumentError(
                    f"{name}={value!r} is no time at all",
                    where=where,
                    fix="pass a duration above zero",
                )
        self._set(
            select=select,
            until=plain(until),
            start=plain(start),
            every=plain(every),
            order=order,
            stats=stats,
            mode=mode,
            slots=slots,
            rewarm=plain(rewarm),
        )
        self._check_combination(where)

    def _check_combination(self, where: str) -> None:
        starts_late = parse(self.start).amount > 0
        if self.until is None and (self.every is not None or parse(self.rewarm).amount > 0):
            name = "rewarm" if self.every is None else "every"
            raise ArgumentError(
                f"{name}={getattr(self, name)!r}, and the parameters never thaw",
                where=where,
                fix="pass until=, the time of the first thawing",
            )
        if starts_late and self.slots is None:
            raise ArgumentError(
                f"the freeze starts within the run, at {self.start!r}, and it isn't said what "
                "becomes of the optimizer's slots",
                where=where,
                fix="pass slots='drop' (they start anew after thawing) or slots='keep'",
            )
        if self.slots is not None and not starts_late:
            raise ArgumentError(
                f"slots={self.slots!r}, and the freeze starts with the run: there are none yet",
                where=where,
                fix="leave slots out, or pass start=",
            )
        start, until = self.start, self.until
        if isinstance(start, int) and isinstance(until, int) and until <= start:
            raise ArgumentError(
                f"until={until} is not after start={start}",
                where=where,
                fix="pass a larger until",
            )

    def resolve(self, horizon: Horizon) -> Freeze:
        """Returns the freeze with every duration in steps.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs.
        """

        def steps(name: str) -> int | None:
            value = getattr(self, name)
            where = f"Freeze({self.select!r}): {name}"
            return None if value is None else to_steps(value, horizon, where=where)

        resolved = {name: steps(name) for name in DURATIONS}
        return self.replace(**resolved)
