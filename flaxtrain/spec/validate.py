"""What makes a spec valid, judged at construction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    UnknownNameError,
    unknown_name,
)
from flaxtrain.optim import NAMED, with_extra_args
from flaxtrain.optim.stages import DECAY
from flaxtrain.params import DECAY_PRESETS
from flaxtrain.schedules import Schedule

if TYPE_CHECKING:
    from flaxtrain.spec.opt_spec import OptSpec

# Nothing here is public: `OptSpec` raises what these functions raise.
__all__ = []

NONFINITE = ("raise", "skip")
ARGUMENTS = ("learning_rate", "weight_decay", "decay", "clip_norm", "nonfinite")

# What other libraries call these arguments, where the spelling is too far for a guess.
_ALSO_KNOWN_AS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "mask": "decay",
    "weight_decay_mask": "decay",
    "max_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
}


def plain(value: Any) -> Any:
    """Scalars of numpy and jax become Python numbers, dtypes their names; dicts are copied."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        is_number = is_concrete(value) and value.ndim == 0 and not is_key(value)
        return value.item() if is_number else value
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(plain, value))
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    return value


def is_key(value: Any) -> bool:
    """Whether a value is a typed key of `jax.random`."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def name_of(value: Any) -> str:
    """Returns the name of an optimizer object or a function, or of the value's type."""
    for attribute in ("name", "__qualname__"):
        name = getattr(value, attribute, None)
        if isinstance(name, str):
            return name
    return type(value).__qualname__


def hyperparameters_from(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns hyperparameters sorted by name.

    `dataclasses.replace` hands the field itself back under the name `hyperparameters`.
    """
    given = dict(given)
    field: Any = given.pop("hyperparameters", ())
    return tuple(sorted({**dict(field), **given}.items()))


def check_spec(spec: OptSpec) -> None:
    """Raises for the first argument that is wrong."""
    if isinstance(spec.optimizer, str):
        where = f"OptSpec({spec.optimizer!r})"
        _check_named(spec, where)
    else:
        where = f"OptSpec({name_of(spec.optimizer)})"
        _check_object(spec, where)
    if spec.clip_norm is not None:
        check_number("clip_norm", spec.clip_norm, minimum=0.0, exclude=(0.0,), where=where)
    if spec.nonfinite not in NONFINITE:
        raise unknown_name("choice of nonfinite", str(spec.nonfinite), NONFINITE, where=where)
    _check_decay(spec.decay, where)


def _check_named(spec: OptSpec, where: str) -> None:
    if spec.optimizer not in NAMED:
        raise unknown_name("optimizer", str(spec.optimizer), NAMED, where="OptSpec(optimizer)")
    entry = NAMED[str(spec.optimizer)]
    for name, _ in spec.hyperparameters:
        if name not in entry.hyperparameters:
            raise _unknown_argument(name, entry.hyperparameters, where)
    _check_learning_rate(spec.learning_rate, where)
    try:
        stages = entry.stages(spec.learning_rate, **dict(spec.hyperparameters))
    except FlaxtrainError as error:  # the stages don't know where their arguments come from
        raise type(error)(error.found, where=where, fix=error.fix) from None
    if spec.weight_decay is not None:
        check_number("weight_decay", spec.weight_decay, minimum=0.0, where=where)
        decay: Any = spec.weight_decay
        if DECAY not in stages and is_concrete(decay) and decay > 0:
            raise ArgumentError(
                f"weight_decay={spec.weight_decay}, and {spec.optimizer} has no weight decay",
                where=where,
                fix="leave weight_decay out, or choose another optimizer",
            )


def _unknown_argument(
    name: str, hyperparameters: Iterable[str], where: str
) -> UnknownNameError:
    known = (*ARGUMENTS, *hyperparameters)
    error = unknown_name("argument", name, known, where=where)
    if name not in _ALSO_KNOWN_AS:
        return error
    fix = f"did you mean {_ALSO_KNOWN_AS[name]!r}? Known: {', '.join(sorted(known))}"
    return UnknownNameError(error.found, where=where, fix=fix)


def _check_learning_rate(learning_rate: Any, where: str) -> None:
    if learning_rate is None:
        raise ArgumentError(
            "no learning rate is given",
            where=where,
            fix="pass learning_rate=1e-3, or a schedule from flaxtrain.schedules",
        )
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, minimum=0.0, where=where)
    if isinstance(learning_rate, Schedule):
        extremes = learning_rate.extremes()
        if extremes is not None and extremes[0] < 0:
            raise ArgumentError(
                f"the learning rate falls to {extremes[0]:g}",
                where=f"{where}: {learning_rate!r}",
                fix="pass a schedule whose values are >= 0; the direction is downhill already",
            )


def _check_object(spec: OptSpec, where: str) -> None:
    tx: Any = spec.optimizer
    try:
        with_extra_args(tx)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"{name_of(tx)} is a {type(tx).__name__}, not an optimizer",
            where="OptSpec(optimizer)",
            fix=f"pass a name ({', '.join(sorted(NAMED))}), or an object with init and update",
        ) from error
    given: dict[str, Any] = {
        "learning_rate": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "decay": None if spec.decay == "kernels" else spec.decay,
        **dict(spec.hyperparameters),
    }
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ArgumentError(
            f"{extra[0]} does not go with an optimizer object, which brings its own",
            where=where,
            fix=f"set {extra[0]} where the object is made, or pass the optimizer by name",
        )


def _check_decay(decay: Any, where: str) -> None:
    if isinstance(decay, str):
        if decay not in DECAY_PRESETS:
            raise unknown_name("decay preset", decay, DECAY_PRESETS, where=where)
    elif isinstance(decay, Mapping):
        _check_mask(decay, where, "decay")
    elif not isinstance(decay, Callable):
        raise ArgumentTypeError(
            f"decay={decay!r} is a {type(decay).__name__}",
            where=where,
            fix=f"pass a preset ({', '.join(DECAY_PRESETS)}), nested dicts of bools, or a "
            "function from the facts of a parameter to a bool; the decay of a moving average "
            "is called b1, b2 or rho",
        )


def _check_mask(mask: Mapping[str, Any], where: str, path: str) -> None:
    for key, node in mask.items():
        place = f"{path}[{key!r}]"
        if isinstance(node, Mapping):
            _check_mask(node, where, place)
        elif not isinstance(node, bool):
            raise ArgumentTypeError(
                f"{place}={node!r} is a {type(node).__name__}, not a bool",
                where=where,
                fix="pass True where the parameter decays and False where not",
            )
