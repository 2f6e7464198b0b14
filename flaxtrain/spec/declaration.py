"""What the declarations of a spec have in common: values that print as their call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import is_concrete
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.optim.transform import same_value
from flaxtrain.params import Selector, SelectorLike, selector

# Nothing here is public: `OptSpec`, `Group`, `Freeze` and `LayerDecay` are.
__all__ = []


class Declaration:
    """Base of declarations: frozen, compared by value, copied with changes.

    The first argument of a subclass's `__init__` stands without its name in the `repr`. A
    field `hyperparameters`, a tuple of pairs, holds what `__init__` takes as `**`.
    """

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that differ from their defaults, as the class takes them."""
        defaults = defaults_of(type(self))
        given = {name: getattr(self, name) for name in names_of(type(self))}
        hyperparameters: Any = given.pop("hyperparameters", ())
        changed = {
            name: value
            for name, value in given.items()
            if defaults[name] is inspect.Parameter.empty
            or not same_value(value, defaults[name])
        }
        return {**changed, **dict(hyperparameters)}

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some arguments changed; hyperparameters that stay are kept.

        Args:
            **changes: arguments of the class. `hyperparameters={...}` replaces all of them.

        Raises:
            FlaxtrainError: as the class does.
        """
        kept = self.arguments()
        if "hyperparameters" in changes:
            kept = {name: v for name, v in kept.items() if name in names_of(type(self))}
        return type(self)(**{**kept, **changes})

    def map(self, function: Callable[[Any], Any]) -> Self:
        """Returns a copy with `function` applied to every argument; itself if none changes."""
        given = self.arguments()
        mapped = {name: function(value) for name, value in given.items()}
        changes = {name: value for name, value in mapped.items() if value is not given[name]}
        return self.replace(**changes) if changes else self

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = names_of(type(self))
        return all(same_value(getattr(self, n), getattr(other, n)) for n in names)

    def __hash__(self) -> int:
        # Only what is sure to hash: a user's optimizer object or a dict of bools need not.
        return hash((type(self), tuple(self.arguments())))

    def __repr__(self) -> str:
        arguments = self.arguments()
        first = names_of(type(self))[0]
        shown = [repr(arguments.pop(first))] if first in arguments else []
        shown += [f"{name}={value!r}" for name, value in arguments.items()]
        return f"{type(self).__name__}({', '.join(shown)})"


@functools.cache
def names_of(cls: type[Any]) -> tuple[str, ...]:
    """Returns the names of a declaration's fields."""
    return tuple(field.name for field in fields(cls))


@functools.cache
def defaults_of(cls: type[Any]) -> Mapping[str, Any]:
    """Returns the defaults of a declaration's arguments."""
    parameters = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def as_choice(choice: SelectorLike, *, where: str) -> SelectorLike:
    """Returns a selector as its text, so that it is data; a function stays what it is.

    Raises:
        FlaxtrainError: `choice` is no selector.
    """
    found = selector(choice, where=where)
    if isinstance(choice, str):
        return choice
    try:
        return str(found)
    except ArgumentTypeError:
        return choice


def as_decay(choice: Any) -> Any:
    """Returns a class of modules, or a list of selectors, as text; all else as it is."""
    if isinstance(choice, (type, list, tuple)):
        return as_choice(choice, where="decay=")
    return choice


def plain(value: Any) -> Any:
    """Scalars of numpy and jax become Python numbers, dtypes their names; dicts are copied."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        is_number = is_concrete(value) and value.ndim == 0 and not is_key(value)
        return value.item() if is_number else value
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    if isinstance(value, Selector):
        return as_choice(value, where="a selector")
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(plain, value))
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    return value


def as_float(value: Any) -> Any:
    """Returns an integer as the float that it means; all else, and what no float equals, as is.

    A learning rate of 1 is one of 1.0: specs that say either are equal, and are one in JSON.
    """
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_integer and abs(value) <= 2**53 else value


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
    return tuple((name, plain(v)) for name, v in sorted({**dict(field), **given}.items()))
