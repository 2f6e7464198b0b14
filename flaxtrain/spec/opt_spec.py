"""What the optimizer does, as data: the one object a run's optimization is declared in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from flaxtrain.durations import Horizon
from flaxtrain.optim import NAMED, GradientTransformation, TransformationLike
from flaxtrain.optim.transform import same_value
from flaxtrain.params import ParamFact
from flaxtrain.schedules import Schedule
from flaxtrain.spec.data import decode, encode, read_json
from flaxtrain.spec.validate import check_spec, hyperparameters_from, plain
from flaxtrain.typing import ArrayLike

__all__ = ["OptSpec"]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class OptSpec:
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
        weight_decay: decoupled decay >= 0, multiplied by the learning rate; None: the named
            optimizer's own default.
        decay: which parameters decay: a preset (`"kernels"`, `"all"`, `"ndim"`), nested dicts
            of bools with the structure of the params, or a function from the facts of a
            parameter, or from its name (an `optim.ParamName`), to a bool.
        clip_norm: largest norm > 0 of the whole gradient, which is scaled down to it; None: no
            clipping.
        nonfinite: what the training step does with a loss or gradient that is NaN or infinite:
            `"raise"`, or `"skip"` the step.
        **hyperparameters: those of the named optimizer, checked by name and range.

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
    weight_decay: ArrayLike | None
    decay: str | Mapping[str, Any] | Callable[[ParamFact], bool]
    clip_norm: ArrayLike | None
    nonfinite: Literal["raise", "skip"]
    hyperparameters: tuple[tuple[str, Any], ...]

    def __init__(
        self,
        optimizer: str | TransformationLike,
        learning_rate: ArrayLike | Callable[[ArrayLike], ArrayLike] | None = None,
        *,
        weight_decay: ArrayLike | None = None,
        decay: str | Mapping[str, Any] | Callable[[ParamFact], bool] = "kernels",
        clip_norm: ArrayLike | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        **hyperparameters: Any,
    ) -> None:
        values = {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "decay": decay,
            "clip_norm": clip_norm,
            "nonfinite": nonfinite,
            "hyperparameters": hyperparameters_from(hyperparameters),
        }
        for name, value in values.items():
            object.__setattr__(self, name, plain(value))
        check_spec(self)

    @property
    def name(self) -> str | None:
        """The registered name of the optimizer; None where it is an object."""
        return self.optimizer if isinstance(self.optimizer, str) else None

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that differ from their defaults, as `OptSpec` takes them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)[:-1]}
        changed = {
            name: value
            for name, value in given.items()
            if name == "optimizer" or not same_value(value, _DEFAULTS[name])
        }
        return {**changed, **dict(self.hyperparameters)}

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some arguments changed; hyperparameters that stay are kept.

        Args:
            **changes: arguments of `OptSpec`. `hyperparameters={...}` replaces all of them.

        Raises:
            FlaxtrainError: as `OptSpec` does.

        Example:
            >>> OptSpec("adam", 0.1, b1=0.8).replace(optimizer="sgd", hyperparameters={})
            OptSpec('sgd', learning_rate=0.1)
        """
        kept = self.arguments()
        if "hyperparameters" in changes:
            kept = {name: value for name, value in kept.items() if name in _NAMES}
        return type(self)(**{**kept, **changes})

    def resolve(self, horizon: Horizon) -> Self:
        """Returns the spec with every relative duration turned into steps.

        Those in the arguments of an optimizer object are resolved too, if the object is of a
        registered name.

        Args:
            horizon: what is known about the run.

        Raises:
            ArgumentError: `horizon` lacks a number that a duration needs.

        Example:
            >>> from flaxtrain.schedules import cosine_decay_schedule
            >>> spec = OptSpec("sgd", cosine_decay_schedule(0.1, decay_steps="100%"))
            >>> spec.resolve(Horizon(total_steps=500)).learning_rate
            cosine_decay_schedule(init_value=0.1, decay_steps=500)
        """
        resolved = {
            "learning_rate": _resolved(self.learning_rate, horizon),
            "optimizer": _resolved(self.optimizer, horizon),
        }
        changes = {name: v for name, v in resolved.items() if v is not getattr(self, name)}
        return self.replace(**changes) if changes else self

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as JSON data, with the version of its form.

        Raises:
            ArgumentTypeError: a part can't be data: a plain function, or an optimizer object
                that is not of a registered name. It is named.
        """
        return encode({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Builds a spec from what `to_dict` returned; fields with a default may be left out.

        Raises:
            UnknownNameError: a field or a name is not known; the error has the nearest one.
            ArgumentError: the data are of another version, or a value is out of range.
            ArgumentTypeError: a value has the wrong type.
        """
        return cls(**decode(data, _NAMES))

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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OptSpec):
            return NotImplemented
        return all(
            same_value(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        # Only what is sure to hash: a user's optimizer object or a dict of bools need not.
        names = tuple(name for name, _ in self.hyperparameters)
        return hash((self.name, str(self.nonfinite), self.clip_norm is None, names))

    def __repr__(self) -> str:
        arguments = self.arguments()
        shown = [repr(arguments.pop("optimizer"))]
        shown += [f"{name}={value!r}" for name, value in arguments.items()]
        return f"OptSpec({', '.join(shown)})"


def _resolved(value: Any, horizon: Horizon) -> Any:
    """Returns a schedule, or an object whose arguments are schedules, in steps."""
    if isinstance(value, Schedule):
        return value.resolve(horizon)
    entry = NAMED.get(getattr(value, "name", None) or "")
    if isinstance(value, GradientTransformation) and entry is not None:
        arguments = {name: _resolved(v, horizon) for name, v in value.arguments.items()}
        if any(arguments[name] is not v for name, v in value.arguments.items()):
            return entry.factory(**arguments)
    return value


_NAMES = tuple(field.name for field in fields(OptSpec))
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(OptSpec.__init__).parameters.items()
}
