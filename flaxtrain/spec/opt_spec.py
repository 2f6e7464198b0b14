"""What the optimizer does, as data: the one object a run's optimization is declared in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from flaxtrain.answering import answering
from flaxtrain.checks import check_instance
from flaxtrain.durations import Horizon, Resolvable
from flaxtrain.errors import ArgumentError
from flaxtrain.optim import NAMED, GradientTransformation, TransformationLike
from flaxtrain.params import DecayChoice, SelectorLike
from flaxtrain.spec.accumulation import AccumulateBatches, as_accumulation
from flaxtrain.spec.averaging import Averaging, as_averaging
from flaxtrain.spec.clip import Clip
from flaxtrain.spec.clips import ClipNorm, as_clips
from flaxtrain.spec.compare import differences, fingerprint
from flaxtrain.spec.data import decode, encode, read_json
from flaxtrain.spec.declaration import (
    Declaration,
    as_decay,
    as_float,
    hyperparameters_from,
    names_of,
    plain,
)
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import Group
from flaxtrain.spec.layer_decay import LayerDecay
from flaxtrain.spec.spikes import Spikes
from flaxtrain.spec.validate import (
    as_freezes,
    as_groups,
    check_spec,
    with_float_arguments,
    with_floats,
)
from flaxtrain.text import counted
from flaxtrain.typing import ArrayLike

__all__ = ["OptSpec"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class OptSpec(Declaration):
    """Declares the optimizer of a run; `build` makes the transformation from it.

    With a name, the update of a parameter x with gradient g is for most optimizers
    `x <- x - learning_rate (u(g) + weight_decay x)`: clipping first, then the optimizer's
    direction u, then the decay (of the parameters that `decay` selects), then the learning
    rate. Where a method has another order (LARS and AdaDelta decay the gradient, Adafactor
    leaves the learning rate out of the decay), it is kept.

    A spec prints as the call that makes it, compares by value, and goes through JSON exactly.

    Args:
        optimizer: a registered name (a key of `flaxtrain.optim.NAMED`, such as `"adamw"`), or
            any gradient transformation, ours or another library's; it then brings learning
            rate, decay and hyperparameters with it.
        learning_rate: a number >= 0, a schedule, or any function of the number of updates
            already applied. Required with a name, refused with an object.
        weight_decay: decoupled decay >= 0, multiplied by the learning rate: a number or a
            schedule; None: the named optimizer's own default.
        decay: which parameters decay: a preset (a key of `params.DECAY_PRESETS`), a selector,
            nested dicts of bools with the structure of the params, or a function from the facts
            of a parameter, or from its name (an `optim.ParamName`), to a bool.
        decay_to: what weight decay pulls towards: `"zero"`, or `"init"`, the values with which
            training of a parameter begins (L2-SP: Li et al. 2018, arXiv:1802.01483).
        clip_norm: largest norm > 0 of the whole gradient, which is scaled down to it: a number
            or a schedule; None: no such clipping. It is `ClipNorm(clip_norm)`, and comes first.
        clip: other kinds of clipping (`ClipValue`, `AdaptiveClip`, `ClipBlockRms`,
            `ClipZScore`), one or several in their order, each kind once.
        nonfinite: what the training step does with a loss or gradient that is NaN or infinite:
            `"raise"`, or `"skip"` the step. An overflow is always a skip while the loss scale
            can fall.
        max_skips: number of rejected batches in a row, at least 1, after which the run ends
            with an error also where they are skipped; None: it goes on. While the loss scale
            can fall, overflows don't end it.
        spikes: which finite steps are skipped too, because their gradient norm or loss is far
            above the usual; None: no step is.
        accumulate: number of microbatches that a batch is split into, at least 1: consecutive
            rows, of whose activations one part is in memory, with BatchNorm's statistics and
            dropout's keys of their own; or an `AccumulateBatches`. The gradient is that of all
            their rows at once.
        ema: which average of the weights is kept beside them: the decay of a moving average, in
            [0, 1), an `Ema`, `Swa` or `Lookahead`; None: none.
        layer_decay: factor in (0, 1] by which the learning rate falls from each layer to the
            one below it, or a `LayerDecay`.
        groups: what is different for some parameters; the first group that selects a parameter
            has it.
        freeze: which parameters are not trained: selectors, or `Freeze` rules.
        **hyperparameters: those of the named optimizer, checked by name and range; numbers may
            be schedules.

    Raises:
        UnknownNameError: the optimizer, an argument or a preset is not known; the error has the
            nearest valid name.
        ArgumentError: a value is out of range, missing, or does not go with an object.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> spec = OptSpec("adamw", learning_rate=1e-3, clip_norm=1.0, b2=0.95)
        >>> spec
        OptSpec('adamw', learning_rate=0.001, clip_norm=1.0, b2=0.95)
        >>> spec.replace(b2=0.99, clip_norm=None)
        OptSpec('adamw', learning_rate=0.001, b2=0.99)
        >>> OptSpec.from_json(spec.to_json()) == spec
        True
    """

    optimizer: str | TransformationLike
    learning_rate: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    weight_decay: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    decay: DecayChoice
    decay_to: Literal["zero", "init"]
    clip_norm: ArrayLike | Callable[[ArrayLike], ArrayLike] | None
    clip: tuple[Clip, ...]
    nonfinite: Literal["raise", "skip"]
    max_skips: int | None
    spikes: Spikes | None
    accumulate: int | AccumulateBatches
    ema: Averaging | None
    layer_decay: float | LayerDecay | None
    groups: tuple[Group, ...]
    freeze: tuple[Freeze, ...]
    hyperparameters: tuple[tuple[str, Any], ...]

    @answering
    def __init__(
        self,
        optimizer: str | TransformationLike,
        learning_rate: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        *,
        weight_decay: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        decay: DecayChoice = "kernels",
        decay_to: Literal["zero", "init"] = "zero",
        clip_norm: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        clip: Clip | Sequence[Clip] = (),
        nonfinite: Literal["raise", "skip"] = "raise",
        max_skips: int | None = 10,
        spikes: Spikes | None = None,
        accumulate: int | AccumulateBatches = 1,
        ema: float | Averaging | None = None,
        layer_decay: float | LayerDecay | None = None,
        groups: Sequence[Group] = (),
        freeze: Freeze | SelectorLike | Sequence[Freeze | SelectorLike] = (),
        **hyperparameters: Any,
    ) -> None:
        values = {
            "optimizer": with_float_arguments(optimizer),
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "decay": as_decay(decay),
            "decay_to": decay_to,
            "clip_norm": clip_norm,
            "nonfinite": nonfinite,
            "layer_decay": layer_decay,
        }
        self._set(**{name: as_float(plain(value)) for name, value in values.items()})
        self._set(
            clip=as_clips(clip, clip_norm, where="OptSpec"),
            max_skips=plain(max_skips),
            spikes=spikes,
            accumulate=plain(accumulate),
            ema=as_averaging(ema, where="OptSpec"),
            groups=as_groups(groups, optimizer),
            freeze=as_freezes(freeze),
            hyperparameters=with_floats(hyperparameters_from(hyperparameters), optimizer),
        )
        check_spec(self)

    @property
    def accumulation(self) -> AccumulateBatches:
        """How many batches and microbatches an update is made of."""
        return as_accumulation(self.accumulate, where="OptSpec")

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All kinds of clipping in their order, that by `clip_norm` among them."""
        first = () if self.clip_norm is None else (ClipNorm(self.clip_norm),)
        return (*first, *self.clip)

    @property
    def name(self) -> str | None:
        """The registered name of the optimizer; None where it is an object."""
        return self.optimizer if isinstance(self.optimizer, str) else None

    def merged(self, group: Group) -> tuple[OptSpec, float]:
        """Returns the spec of one group, with what it inherits, and the factor of its rate.

        Its clipping is the group's own: that of the whole gradient is not repeated.

        Raises:
            FlaxtrainError: as `OptSpec` does; the group is named.
        """
        own = dict(group.own())
        factor = own.pop("lr_mult", 1.0)
        if (schedule := own.pop("schedule", None)) is not None:
            factor *= own.pop("learning_rate", 1.0)
            own["learning_rate"] = schedule
        other = own.get("optimizer", self.optimizer)
        inherited: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "decay": self.decay,
            "decay_to": self.decay_to,
        }
        if other is self.optimizer or other == self.optimizer:
            inherited |= {"weight_decay": self.weight_decay, **dict(self.hyperparameters)}
        elif not isinstance(other, str):
            inherited = {}
        return OptSpec(**{**inherited, "optimizer": self.optimizer, **own}), factor

    def resolve(self, horizon: Horizon) -> Self:
        """Returns the spec with every relative duration turned into steps.

        Those in the arguments of an optimizer object are resolved too, if the object is of a
        registered name.

        Args:
            horizon: what is known about the run.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs, or has another number
                of batches to an update than the spec.

        Example:
            >>> from flaxtrain.schedules import cosine_decay_schedule
            >>> spec = OptSpec("sgd", cosine_decay_schedule(0.1, decay_steps="100%"))
            >>> spec.resolve(Horizon(batches=500)).learning_rate
            cosine_decay_schedule(init_value=0.1, decay_steps=500)
        """
        count = self.accumulation.count
        check_instance(
            "horizon",
            horizon,
            Horizon,
            where="OptSpec.resolve",
            fix="pass flaxtrain.durations.Horizon(batches=..., batches_per_epoch=...)",
        )
        if horizon != Horizon() and horizon.batches_per_update != count:
            raise ArgumentError(
                f"the horizon has batches_per_update={horizon.batches_per_update}, the spec "
                f"makes an update of {counted(count, 'batch', 'batches')}",
                where=f"OptSpec(accumulate={self.accumulate!r}).resolve",
                fix=f"pass Horizon(..., batches_per_update={count})",
            )
        return self.map(lambda value: _resolved(value, horizon))

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as JSON data, with the version of its form.

        Raises:
            ArgumentTypeError: a part can't be data: a plain function, or an optimizer object
                that is not of a registered name. It is named.
        """
        return encode(self)

    def fingerprint(self) -> str:
        """Returns a short text that depends on all that the spec says, and on nothing else.

        Numbers are compared by value: a learning rate of 1 is one of 1.0.

        Raises:
            ArgumentTypeError: a part can't be data (see `to_dict`).

        Example:
            >>> spec = OptSpec("sgd", 0.1, momentum=0.9)
            >>> spec.fingerprint() == OptSpec.from_json(spec.to_json()).fingerprint()
            True
            >>> OptSpec("sgd", 1).fingerprint() == OptSpec("sgd", 1.0).fingerprint()
            True
        """
        return fingerprint(self)

    def diff(self, other: OptSpec) -> tuple[str, ...]:
        """Returns what is different in another spec, one line for each field.

        Raises:
            ArgumentTypeError: `other` is no spec.

        Example:
            >>> OptSpec("adamw", 0.1, b2=0.95).diff(OptSpec("adamw", 0.2, b2=0.95))
            ('learning_rate: 0.1 -> 0.2',)
        """
        return differences(self, other)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Builds a spec from what `to_dict` returned; fields with a default may be left out.

        Raises:
            UnknownNameError: a field or a name is not known; the error has the nearest one.
            ArgumentError: the data are of another version, or a value is out of range.
            ArgumentTypeError: a value has the wrong type.
        """
        return cls(**decode(data, names_of(cls)))

    def to_json(self, *, indent: int | None = None) -> str:
        """Returns the spec as JSON text.

        Raises:
            ArgumentTypeError: a part can't be data (see `to_dict`).
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Builds a spec from what `to_json` returned.

        Raises:
            ArgumentError: `text` is not JSON.
            FlaxtrainError: as `from_dict` does.
        """
        return cls.from_dict(read_json(text))


def _resolved(value: Any, horizon: Horizon) -> Any:
    """Returns a schedule, or what holds schedules and durations, in steps."""
    if isinstance(value, Resolvable):
        resolved = value.resolve(horizon)
        return value if resolved == value else resolved
    if isinstance(value, Group):
        return value.map(lambda part: _resolved(part, horizon))
    if isinstance(value, tuple):
        parts = tuple(_resolved(part, horizon) for part in value)
        return value if all(a is b for a, b in zip(parts, value)) else parts
    entry = NAMED.get(getattr(value, "name", None) or "")
    if isinstance(value, GradientTransformation) and entry is not None:
        arguments = {name: _resolved(v, horizon) for name, v in value.arguments.items()}
        if any(arguments[name] is not v for name, v in value.arguments.items()):
            return entry.factory(**arguments)
    return value
