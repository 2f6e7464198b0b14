"""What makes a spec valid, judged at construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flaxtrain.checks import check_choice, check_number, is_concrete
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    FlaxtrainError,
    UnknownNameError,
    unknown_name,
)
from flaxtrain.optim import NAMED, GradientTransformation, with_extra_args
from flaxtrain.optim.registry import NamedOptimizer
from flaxtrain.optim.stages import DECAY
from flaxtrain.optim.transform import same_value
from flaxtrain.params import check_decay_choice
from flaxtrain.schedules import Schedule
from flaxtrain.spec.accumulation import as_accumulation
from flaxtrain.spec.declaration import as_float, name_of, names_of
from flaxtrain.spec.freeze import Freeze
from flaxtrain.spec.group import DEFAULT, Group
from flaxtrain.spec.hyperparameters import adjustable, check_scheduled, extremes_of
from flaxtrain.spec.layer_decay import LayerDecay
from flaxtrain.spec.spikes import check_skips
from flaxtrain.text import kind_of, with_article

if TYPE_CHECKING:
    from flaxtrain.spec.opt_spec import OptSpec

# Nothing here is public: `OptSpec` raises what these functions raise.
__all__ = []

T = TypeVar("T")

NONFINITE = ("raise", "skip")
DECAY_TO = ("zero", "init")
ARGUMENTS = (
    "learning_rate",
    "weight_decay",
    "decay",
    "decay_to",
    "clip_norm",
    "clip",
    "nonfinite",
    "max_skips",
    "spikes",
    "accumulate",
    "ema",
    "layer_decay",
    "groups",
    "freeze",
)
SPEC_ARGUMENTS = {name: f"OptSpec({name}=...)" for name in ARGUMENTS}
"""Who takes them: the spec says what the optimizer does, also where it concerns the step."""

# What other libraries call these arguments, where the spelling is too far for a guess.
_ALSO_KNOWN_AS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "mask": "decay",
    "weight_decay_mask": "decay",
    "max_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "clip_value": "clip",
    "max_grad_value": "clip",
}


def as_tuple(values: Any, kind: type[T], *, where: str) -> tuple[T, ...]:
    """Returns a sequence of `kind` as a tuple; one alone is a sequence of one."""
    found = (values,) if isinstance(values, kind) else values
    if not isinstance(found, (tuple, list)):
        raise ArgumentTypeError(
            f"{values!r} is {kind_of(values)}, not a list",
            where=where,
            fix=f"pass a list of {kind.__name__}",
        )
    for index, value in enumerate(found):
        if not isinstance(value, kind):
            raise ArgumentTypeError(
                f"{value!r} is {kind_of(value)}, not {with_article(kind.__name__)}",
                where=f"{where}, number {index}",
                fix=f"pass {kind.__name__}(...)",
            )
    return tuple(found)


def as_groups(groups: Any, optimizer: Any) -> tuple[Group, ...]:
    """Returns groups with floats where their optimizer, or else `optimizer`, means floats."""
    found: list[Group] = []
    for group in as_tuple(groups, Group, where="OptSpec(groups=...)"):
        given = group.hyperparameters
        settled = with_floats(given, optimizer if group.optimizer is None else group.optimizer)
        own = with_float_arguments(group.optimizer)
        same = own is group.optimizer and same_value(settled, given)
        found.append(group if same else group.replace(optimizer=own, hyperparameters=settled))
    return tuple(found)


def with_float_arguments(optimizer: Any) -> Any:
    """Returns an object of a registered name made with floats where integers mean floats.

    Example:
        >>> from flaxtrain.optim import sgd
        >>> with_float_arguments(sgd(1, momentum=0)).arguments
        {'learning_rate': 1.0, 'momentum': 0.0}
    """
    if not isinstance(optimizer, GradientTransformation):
        return optimizer
    entry = NAMED.get(optimizer.name or "")
    # Someone's own may have the name of one of ours.
    if entry is None or entry.factory is not optimizer.factory:
        return optimizer
    numbers = {"learning_rate", "weight_decay", *adjustable(entry)}
    given = dict(optimizer.arguments)
    floats = {name: as_float(v) if name in numbers else v for name, v in given.items()}
    return optimizer if same_value(floats, given) else entry.factory(**floats)


def with_floats(given: Sequence[tuple[str, T]], optimizer: Any) -> tuple[tuple[str, T], ...]:
    """Returns hyperparameters with floats for integers where a named optimizer means floats.

    Block sizes, seeds and the like stay integers.
    """
    entry = NAMED.get(optimizer) if isinstance(optimizer, str) else None
    numbers = {} if entry is None else adjustable(entry)
    return tuple((name, as_float(v) if name in numbers else v) for name, v in given)


def as_freezes(rules: Any) -> tuple[Freeze, ...]:
    """Returns what is frozen as rules; a selector alone means for ever."""
    several = rules if isinstance(rules, (tuple, list)) else (rules,)
    return tuple(rule if isinstance(rule, Freeze) else Freeze(rule) for rule in several)


def check_spec(spec: OptSpec) -> None:
    """Raises for the first argument that is wrong."""
    if isinstance(spec.optimizer, str):
        where = f"OptSpec({spec.optimizer!r})"
        _check_named(spec, where)
    else:
        where = f"OptSpec({name_of(spec.optimizer)})"
        _check_object(spec, where)
    if spec.clip_norm is not None:
        check_scheduled("clip_norm", spec.clip_norm, where, minimum=0.0, exclude=(0.0,))
    if spec.nonfinite not in NONFINITE:
        raise unknown_name("choice of nonfinite", str(spec.nonfinite), NONFINITE, where=where)
    check_skips(spec.max_skips, spec.spikes, where=where)
    check_choice("decay_to", spec.decay_to, DECAY_TO, where=where)
    check_decay_choice(spec.decay, where=where)
    if spec.layer_decay is not None and not isinstance(spec.layer_decay, LayerDecay):
        LayerDecay(spec.layer_decay)
    as_accumulation(spec.accumulate, where=where)
    _check_groups(spec)


def _check_own(group: Group, optimizer: Any, where: str) -> None:
    """Refuses arguments of the whole spec, which `Group` takes for hyperparameters."""
    for name, _ in group.hyperparameters:
        if name in ARGUMENTS:
            raise ArgumentError(
                f"{name} is said of all parameters together",
                where=where,
                fix=f"pass {name}= to OptSpec",
            )
        entry = NAMED.get(optimizer) if isinstance(optimizer, str) else None
        if entry is not None and name not in entry.hyperparameters:
            arguments = [field for field in names_of(Group) if field != "hyperparameters"]
            known = (*arguments, *entry.hyperparameters)
            raise _unknown_argument(name, known, where)


def _check_groups(spec: OptSpec) -> None:
    labels: dict[str, int] = {DEFAULT: -1}
    for index, group in enumerate(spec.groups):
        where = f"Group({group.select!r})"
        label = group.label(index)
        if label in labels:
            taken = "the rest" if label == DEFAULT else f"group number {labels[label]}"
            raise ArgumentError(
                f"the name {label!r} is that of {taken}",
                where=where,
                fix="pass another name=",
            )
        labels[label] = index
        own = spec.optimizer if group.optimizer is None else group.optimizer
        _check_own(group, own, where)
        try:
            merged, factor = spec.merged(group)
        except FlaxtrainError as error:
            raise type(error)(error.found, where=where, fix=error.fix) from None
        if merged.name is None and factor != 1.0:
            raise ArgumentError(
                "a factor of the learning rate does not go with an optimizer object, which "
                "brings its own rate",
                where=where,
                fix="set the rate where the object is made, or pass the optimizer by name",
            )


def _check_named(spec: OptSpec, where: str) -> None:
    if spec.optimizer not in NAMED:
        raise unknown_name("optimizer", str(spec.optimizer), NAMED, where="OptSpec(optimizer)")
    entry = NAMED[str(spec.optimizer)]
    for name, _ in spec.hyperparameters:
        if name not in entry.hyperparameters:
            raise _unknown_argument(name, (*ARGUMENTS, *entry.hyperparameters), where)
    _check_learning_rate(spec.learning_rate, where)
    stages = _check_hyperparameters(spec, entry, where)
    if spec.weight_decay is not None:
        check_scheduled("weight_decay", spec.weight_decay, where, minimum=0.0)
        decay: Any = spec.weight_decay
        is_on = callable(decay) or (is_concrete(decay) and decay > 0)
        if DECAY not in stages and is_on:
            raise ArgumentError(
                f"weight_decay={spec.weight_decay}, and {spec.optimizer} has no weight decay",
                where=where,
                fix="leave weight_decay out, or choose another optimizer",
            )


def _check_hyperparameters(spec: OptSpec, entry: NamedOptimizer, where: str) -> Any:
    """Makes the stages with the smallest and the largest value of each scheduled number."""
    given = dict(spec.hyperparameters)
    numbers = adjustable(entry)
    extremes: dict[str, tuple[Any, Any]] = {}
    for name, value in given.items():
        if not callable(value) or isinstance(value, type):
            continue
        if name not in numbers:
            raise ArgumentTypeError(
                f"{name} is no number and can't follow a schedule: {value!r}",
                where=where,
                fix=f"numbers of {spec.optimizer}: {', '.join(numbers) or '(none)'}",
            )
        if name in entry.initial_only:
            raise ArgumentError(
                f"{name} is read only when slots begin, and can't follow a schedule: {value!r}",
                where=where,
                fix="pass a number",
            )
        extremes[name] = extremes_of(value, name, where)
    stages: Any = ()
    for end in (0, 1):
        values = {**given, **{name: pair[end] for name, pair in extremes.items()}}
        try:
            stages = entry.stages(spec.learning_rate, **values)
        except FlaxtrainError as error:  # the stages don't know where their arguments come from
            raise type(error)(error.found, where=where, fix=error.fix) from None
    return stages


def _unknown_argument(name: str, known: Sequence[str], where: str) -> UnknownNameError:
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
    named = name_of(tx)
    try:
        with_extra_args(tx)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"{named if named != type(tx).__qualname__ else repr(tx)} is {kind_of(tx)}, "
            "not an optimizer",
            where="OptSpec(optimizer)",
            fix=f"pass a name ({', '.join(sorted(NAMED))}), or an object with init and update",
        ) from error
    given: dict[str, Any] = {
        "learning_rate": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "decay": None if spec.decay == "kernels" else spec.decay,
        "decay_to": None if spec.decay_to == "zero" else spec.decay_to,
        "layer_decay": spec.layer_decay,
        **dict(spec.hyperparameters),
    }
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ArgumentError(
            f"{extra[0]} does not go with an optimizer object, which brings its own",
            where=where,
            fix=f"set {extra[0]} where the object is made, or pass the optimizer by name",
        )
