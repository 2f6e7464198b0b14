"""A group of parameters and what is different for it; all that isn't said is inherited."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxtrain.answering import answering
from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim import TransformationLike
from flaxtrain.params import DecayChoice, SelectorLike
from flaxtrain.spec.clip import Clip
from flaxtrain.spec.clips import as_clips
from flaxtrain.spec.declaration import (
    Declaration,
    as_choice,
    as_decay,
    as_float,
    hyperparameters_from,
    plain,
)
from flaxtrain.text import kind_of
from flaxtrain.typing import ArrayLike

__all__ = ["Group"]

DEFAULT = "default"
"""The name of the group of all parameters that are in no other."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Group(Declaration):
    """What the optimizer does differently for some parameters.

    A parameter is in the first group of the spec that selects it, and in the group `"default"`
    if none does. Arguments that are not given are those of the spec; with another optimizer,
    hyperparameters and weight decay are that optimizer's own defaults.

    Args:
        select: which parameters, see `Selector`.
        name: the group's name in states, tables and curves; default: made from `select`, such
            as `"head"` for `"head/**"`.
        learning_rate: a number >= 0, or a schedule, in place of the spec's.
        lr_mult: factor >= 0 of the learning rate, the inherited one or the group's own; with
            `rprop` of the first step sizes only, since later ones don't go by the rate.
        schedule: a schedule of the learning rate in place of the spec's; beside a number as
            `learning_rate`, a schedule of its factor.
        optimizer: another optimizer: a registered name, or a transformation object.
        weight_decay: a number >= 0, or a schedule.
        decay: which parameters of the group decay.
        clip_norm: largest norm > 0 of this group's gradient, or a schedule; it comes after the
            clipping of the whole gradient by the spec's own `clip_norm` and `clip`.
        clip: other kinds of clipping of this group's gradient, one or several in their order.
        **hyperparameters: those of the optimizer.

    Raises:
        ArgumentError: a value is out of range, or arguments contradict each other.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: (when the spec is made) an optimizer or hyperparameter is not known.

    Example:
        >>> Group("head/**", lr_mult=10.0)
        Group('head/**', lr_mult=10.0)
        >>> Group("head/**", lr_mult=10.0).label(0), Group(lambda fact: True).label(3)
        ('head', 'group_3')
    """

    select: SelectorLike
    name: str | None
    learning_rate: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    lr_mult: ArrayLike
    schedule: Callable[[ArrayLike], ArrayLike] | None
    optimizer: str | TransformationLike | None
    weight_decay: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    decay: DecayChoice | None
    clip_norm: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    clip: tuple[Clip, ...]
    hyperparameters: tuple[tuple[str, Any], ...]

    @answering
    def __init__(
        self,
        select: SelectorLike,
        *,
        name: str | None = None,
        learning_rate: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        lr_mult: ArrayLike = 1.0,
        schedule: Callable[[ArrayLike], ArrayLike] | None = None,
        optimizer: str | TransformationLike | None = None,
        weight_decay: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        decay: DecayChoice | None = None,
        clip_norm: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        clip: Clip | Sequence[Clip] = (),
        **hyperparameters: Any,
    ) -> None:
        where = f"Group({select!r})"
        select = as_choice(select, where=where)
        check_number("lr_mult", lr_mult, minimum=0.0, where=where)
        if name is not None and not isinstance(name, str):
            raise ArgumentTypeError(
                f"name={name!r} is {kind_of(name)}", where=where, fix="pass a string"
            )
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise ArgumentError(
                f"name={name!r} can't be a key and a curve's name",
                where=where,
                fix="use letters, digits, '_', '-' and '.'",
            )
        if schedule is not None and not callable(schedule):
            raise ArgumentTypeError(
                f"schedule={schedule!r} is {kind_of(schedule)}, not a schedule",
                where=where,
                fix="pass one of flaxtrain.schedules, or a number as learning_rate=",
            )
        if schedule is not None and callable(learning_rate):
            raise ArgumentError(
                "both learning_rate and schedule are schedules",
                where=where,
                fix="leave one of them out",
            )
        values = {
            "learning_rate": learning_rate,
            "lr_mult": lr_mult,
            "schedule": schedule,
            "optimizer": optimizer,
            "weight_decay": weight_decay,
            "decay": as_decay(decay),
            "clip_norm": clip_norm,
        }
        values = {k: as_float(plain(v)) for k, v in values.items()}
        self._set(select=select, name=name, **values)
        self._set(clip=as_clips(clip, clip_norm, where=where))
        self._set(hyperparameters=hyperparameters_from(hyperparameters))

    def label(self, index: int) -> str:
        """Returns the group's name; `index` is its place among the groups of the spec."""
        if self.name is not None:
            return self.name
        text = self.select if isinstance(self.select, str) else ""
        return re.sub(r"\W+", "_", text).strip("_") or f"group_{index}"

    def own(self) -> Mapping[str, Any]:
        """Returns what the group says itself, without the selector and the name."""
        given = self.arguments()
        return {k: v for k, v in given.items() if k not in ("select", "name")}
