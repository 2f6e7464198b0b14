"""The optimizer protocol: a pair `init(params)`, `update(updates, state, params=None, **extra_args)`.

It is the field's own (optax's), so objects of either library run inside the other. Ours also know
their name and arguments, so that they print, compare, hash and serialise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, ParamSpec, Protocol

from flaxtrain.errors import ArgumentTypeError, nearest
from flaxtrain.typing import OptState, Params, Updates

__all__ = [
    "EmptyState",
    "GradientTransformation",
    "InitFn",
    "TransformationLike",
    "UpdateFn",
    "identity",
    "named",
    "stateless",
    "with_extra_args",
]

P = ParamSpec("P")


class InitFn(Protocol):
    """`init(params) -> state`."""

    def __call__(self, params: Params, /) -> OptState: ...


class UpdateFn(Protocol):
    """`update(updates, state, params=None, **extra_args) -> (updates, state)`."""

    def __call__(
        self, updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]: ...


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


class TransformationLike(Protocol):
    """Anything with `init` and `update`: ours, optax's, or a user's own pair."""

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def update(self) -> Callable[..., Any]: ...


@dataclass(frozen=True, eq=False, repr=False)
class GradientTransformation:
    """A gradient transformation: two pure functions, and what they were made from.

    Unpacks as `init, update = tx`. `update` accepts and ignores extra keyword arguments that it
    does not need. Two transformations are equal when they were made by the same named factory from
    equal arguments; one without a name is equal to itself only.

    Example:
        >>> from flaxtrain import optim
        >>> optim.sgd(0.1)
        sgd(learning_rate=0.1)
        >>> optim.sgd(0.1) == optim.sgd(0.1), optim.sgd(0.1) == optim.sgd(0.2)
        (True, False)
        >>> init, update = optim.sgd(0.1)
    """

    init: InitFn
    update: UpdateFn
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        yield self.init
        yield self.update

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, GradientTransformation) or self.name is None or self.name != other.name:
            return False
        return self.arguments.keys() == other.arguments.keys() and all(
            _same(value, other.arguments[key]) for key, value in self.arguments.items()
        )

    def __hash__(self) -> int:
        return object.__hash__(self) if self.name is None else hash(self.name)

    def __repr__(self) -> str:
        if self.name is None:
            return f"GradientTransformation(init={self.init!r}, update={self.update!r})"
        parts = (
            ", ".join(map(repr, value)) if key == "*" else f"{key}={value!r}" for key, value in self.arguments.items()
        )
        return f"{self.name}({', '.join(part for part in parts if part)})"


def _same(a: Any, b: Any) -> bool:
    """Equality that never compares arrays by value (their `==` is not a truth value)."""
    if a is b:
        return True
    if hasattr(a, "shape") or hasattr(b, "shape") or type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def named(factory: Callable[P, GradientTransformation]) -> Callable[P, GradientTransformation]:
    """Decorates a factory so that what it returns knows its name and the arguments that differ
    from the defaults, and so that a misspelt argument is answered with the nearest valid one.

    A variadic `*args` is kept under the key `"*"`.

    Raises:
        ArgumentTypeError: (from the decorated factory) the call does not bind.
    """
    signature = inspect.signature(factory)
    variadic = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None)

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _does_not_bind(factory.__name__, signature, kwargs, error) from None
        given: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            default = signature.parameters[key].default
            if default is inspect.Parameter.empty or not _same(value, default):
                given["*" if key == variadic else key] = value
        return replace(factory(*args, **kwargs), name=factory.__name__, arguments=given)

    return build


def _does_not_bind(
    name: str, signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError
) -> ArgumentTypeError:
    wrong = [key for key in kwargs if key not in signature.parameters]
    guess = nearest(wrong[0], signature.parameters) if wrong else []
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return ArgumentTypeError(str(error), where=f"{name}{signature}"[:200], fix=f"{hint}Arguments: {', '.join(signature.parameters)}")


def identity() -> GradientTransformation:
    """Returns the transformation that leaves updates as they are.

    Example:
        >>> identity().update({"w": 1.0}, EmptyState())
        ({'w': 1.0}, EmptyState())
    """
    return stateless(lambda updates, params: updates)


def stateless(function: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """Makes a transformation without state from `function(updates, params) -> updates`.

    Example:
        >>> double = stateless(lambda updates, params: updates * 2)
        >>> double.update(3.0, double.init(None))
        (6.0, EmptyState())
    """

    def init(params: Params, /) -> EmptyState:
        return EmptyState()

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return function(updates, params), state

    return GradientTransformation(init, update)


def with_extra_args(tx: TransformationLike) -> GradientTransformation:
    """Returns `tx` with an `update` that accepts any extra keyword argument.

    Ours are returned as they are. Of a foreign object, arguments that its `update` does not name
    are dropped; one with `**kwargs` gets them all.

    Raises:
        ArgumentTypeError: `tx` has no `init` and `update`.
    """
    if isinstance(tx, GradientTransformation):
        return tx
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise ArgumentTypeError(
            f"{tx!r} is not a gradient transformation", fix="pass an object with init(params) and update(updates, state, params)"
        )
    parameters = inspect.signature(tx.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return GradientTransformation(tx.init, tx.update)

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return tx.update(updates, state, params, **{k: v for k, v in extra_args.items() if k in parameters})

    return GradientTransformation(tx.init, update)
