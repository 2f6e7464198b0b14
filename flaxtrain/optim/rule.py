"""What an optimizer is, seen from one array.

A rule is a value: hyperparameters are its fields, and its methods are pure. It is also a
pytree: fields that hold arrays (or tracers, or trees of them) are leaves, fields that hold
Python numbers, strings, dtypes or None are part of its structure. So a rule goes through `jit`
and `vmap` like any other value, constants are compiled in, and changing an array does not
recompile anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import jax
import numpy as np

from flaxtrain.optim.transform import same_value
from flaxtrain.typing import Array

__all__ = ["NoSlots", "Rule", "rule"]

R = TypeVar("R", bound="Rule")


class NoSlots(NamedTuple):
    """The slots of a rule that remembers nothing."""


_STATIC = (bool, int, float, complex, str, bytes, type, np.dtype, Enum, type(None))


@dataclass(frozen=True, eq=False)
class Rule:
    """Base of all rules about one array.

    Subclasses are declared with the `rule` decorator, which makes them frozen dataclasses and
    pytrees. They define `update`, `Slots` and `init` if something is remembered, and `scalars`
    if something depends on the step.

    Attributes:
        Slots: a NamedTuple type; its field names are the names of the slots.
        needs_params: whether `update` looks at the parameter; if not, it is given None.

    Example:
        >>> from typing import NamedTuple
        >>> import jax.numpy as jnp
        >>> class SumSlots(NamedTuple):
        ...     total: Array
        >>> @rule
        ... class Sum(Rule):
        ...     factor: float
        ...     Slots = SumSlots
        ...     def init(self, param):
        ...         return SumSlots(jnp.zeros_like(param))
        ...     def update(self, grad, slots, param, scalars):
        ...         total = slots.total + self.factor * grad
        ...         return total, SumSlots(total)
        >>> Sum(2.0)
        Sum(factor=2.0)
        >>> update, slots = Sum(2.0).update(jnp.float32(3.0), SumSlots(1.0), None, None)
        >>> print(slots.total)
        7.0
    """

    Slots: ClassVar[Callable[..., Any]] = NoSlots
    needs_params: ClassVar[bool] = False

    def init(self, param: Array) -> Any:
        """Returns the slots of one parameter before its first update, a `Slots`; here none."""
        if self.Slots is not NoSlots:
            raise NotImplementedError(f"{type(self).__name__} has Slots, and needs init")
        return NoSlots()

    def scalars(self, t: Array) -> Any:
        """Returns what depends on the step only, once for all arrays.

        Args:
            t: int32 scalar, 1 at the first update.
        """
        return None

    def update(
        self, grad: Array, slots: Any, param: Array | None, scalars: Any
    ) -> tuple[Array, Any]:
        """Returns the update of one array and its new slots.

        Args:
            grad: the gradient, or what the transformation before this one made of it.
            slots: a `Slots`.
            param: the parameter; None unless `needs_params`.
            scalars: what `scalars(t)` returned.
        """
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = (field.name for field in fields(self))
        return all(same_value(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        return hash((type(self), _flatten(self)[1]))


@dataclass_transform(frozen_default=True, eq_default=False)
def rule(cls: type[R]) -> type[R]:
    """Makes a subclass of `Rule` a frozen dataclass and registers it as a pytree.

    Example:
        >>> @rule
        ... class Scale(Rule):
        ...     factor: Any
        >>> jax.tree.leaves(Scale(2.0)), jax.tree.leaves(Scale(np.float32(2.0)))
        ([], [np.float32(2.0)])
    """
    cls = dataclass(frozen=True, eq=False)(cls)
    jax.tree_util.register_pytree_with_keys(
        cls,
        _flatten_with_keys,
        lambda names, children: _unflatten(cls, names, children),
        _flatten,
    )
    return cls


def _is_static(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    return isinstance(value, _STATIC) or (callable(value) and not hasattr(value, "shape"))


def _flatten_with_keys(instance: Rule) -> tuple[list[Any], Any]:
    children, structure = _flatten(instance)
    keys = map(jax.tree_util.GetAttrKey, structure[0])
    return list(zip(keys, children)), structure


def _flatten(instance: Rule) -> tuple[list[Any], Any]:
    """Splits the fields by what they hold now, not by their declaration."""
    values = {f.name: getattr(instance, f.name) for f in fields(instance)}
    static = {name: value for name, value in values.items() if _is_static(value)}
    names = tuple(name for name in values if name not in static)
    # The type stands beside the value because 1 == 1.0 == True, and they don't trace alike.
    structure = (names, tuple((name, type(value), value) for name, value in static.items()))
    return [values[name] for name in names], structure


def _unflatten(cls: type[R], structure: Any, children: Any) -> R:
    # Without __init__: jax also builds trees of placeholders, which no check would accept.
    instance = object.__new__(cls)
    names, static = structure
    for name, value in zip(names, children):
        object.__setattr__(instance, name, value)
    for name, _, value in static:
        object.__setattr__(instance, name, value)
    return instance
