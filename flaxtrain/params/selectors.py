"""Selectors as values: what they match, how they combine, and how they are written.

`flaxtrain.params.select` makes them from what a user passes, and says what the texts mean.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.params.facts import ParamFact
from flaxtrain.params.globs import glob_pattern, path_text
from flaxtrain.text import kind_of

__all__ = [
    "AllOf",
    "AnyOf",
    "Asked",
    "Glob",
    "Hidden",
    "Not",
    "OfClass",
    "OfRole",
    "Regex",
    "Selector",
]


class Selector(ABC):
    """Says which parameters are meant; made by `selector(choice)`.

    Selectors are immutable values: they combine with `&`, `|` and `~`, compare and hash by what
    they say, and `str` gives the text that `selector` reads back as an equal one.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> from flaxtrain.params.select import selector
        >>> kernels = selector("#kernel") & ~selector("head")
        >>> kernels, str(kernels)
        (selector('#kernel & ~head'), '#kernel & ~head')
        >>> facts = param_facts(nn.Dense(4), jnp.ones((1, 3)))
        >>> kernels.matches(facts["kernel"]), kernels.matches(facts["bias"])
        (True, False)
    """

    # How tightly the text holds together: `|` 0, `&` 1, `~` 2, the rest 3.
    binding: ClassVar[int] = 3

    @abstractmethod
    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the parameter is meant.

        Raises:
            ArgumentTypeError: a function that the selector asks returned no bool.
        """

    @abstractmethod
    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text; `function_text` says how a function is written."""

    def simple(self) -> Iterator[Selector]:
        """Yields the selectors that this one is combined from, in order."""
        yield self

    def __and__(self, other: Selector) -> Selector:
        """Both."""
        return AllOf((*_parts(self, AllOf), *_parts(_checked(other), AllOf)))

    def __or__(self, other: Selector) -> Selector:
        """Either, or both."""
        return AnyOf((*_parts(self, AnyOf), *_parts(_checked(other), AnyOf)))

    def __invert__(self) -> Selector:
        """All other parameters."""
        return self.part if isinstance(self, Not) else Not(self)

    def __str__(self) -> str:
        """Returns the text that `selector` reads back.

        Raises:
            ArgumentTypeError: the selector asks a function, which has no text.
        """
        return self.written(_no_text)

    def __repr__(self) -> str:
        return f"selector({self.written(_function_name)!r})"


@dataclass(frozen=True, repr=False)
class Glob(Selector):
    """A path in which `*`, `?` and `[..]` stand for parts of a level and `**` for levels."""

    text: str

    def __post_init__(self) -> None:
        _ = self._pattern  # says what is wrong with the text

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return glob_pattern(self.text)

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the parameter's path fits."""
        return self._pattern.fullmatch(path_text(fact.path)) is not None

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return self.text


@dataclass(frozen=True, repr=False)
class Regex(Selector):
    """A regular expression that the whole name of the parameter has to match."""

    pattern: str

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the parameter's name fits from its beginning to its end."""
        return self._compiled.fullmatch(fact.name) is not None

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return f"re:{self.pattern}"


@dataclass(frozen=True, repr=False)
class OfClass(Selector):
    """The class of the parameter's module, or of one around it, or a base class of these.

    Attributes:
        name: the name of the class.
        cls: the class itself, where it was given: then it is what counts, and not its name.
    """

    name: str
    cls: type[nn.Module] | None = field(default=None, compare=False)

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether such a module is the parameter's or around it."""
        return any(map(self._is_one, classes_around(fact)))

    def _is_one(self, cls: type[nn.Module]) -> bool:
        if self.cls is not None:
            return issubclass(cls, self.cls)
        return any(base.__name__ == self.name for base in cls.__mro__)

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return f"@{self.name}"


@dataclass(frozen=True, repr=False)
class OfRole(Selector):
    """The role of the parameter."""

    role: str

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the parameter has the role."""
        return fact.role == self.role

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return f"#{self.role}"


@dataclass(frozen=True, repr=False)
class Hidden(Selector):
    """The matrices between hidden activations, as `ParamFact.hidden` says."""

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the parameter is such a matrix."""
        return fact.hidden

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return "#hidden"


@dataclass(frozen=True, repr=False)
class Asked(Selector):
    """A function from the facts of a parameter to a bool."""

    function: Callable[[ParamFact], Any]

    def matches(self, fact: ParamFact) -> bool:
        """Returns what the function says."""
        place = f"{_function_name(self.function)}, parameter {fact.name!r}"
        try:
            answer = self.function(fact)
        except Exception as error:
            error.add_note(f"raised by the selector {place}")
            raise
        if isinstance(answer, (bool, np.bool_)):
            return bool(answer)
        raise ArgumentTypeError(
            f"{answer!r} is {kind_of(answer)}, not True or False",
            where=place,
            fix="return True where the parameter is meant and False where not",
        )

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns what stands for the function."""
        return function_text(self.function)

    def __repr__(self) -> str:
        return f"selector({_function_name(self.function)})"


@dataclass(frozen=True, repr=False)
class AnyOf(Selector):
    """What at least one of the parts matches."""

    parts: tuple[Selector, ...]
    binding: ClassVar[int] = 0

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether a part matches."""
        return any(part.matches(fact) for part in self.parts)

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return " | ".join(_within(self, part, function_text) for part in self.parts)

    def simple(self) -> Iterator[Selector]:
        """Yields the selectors that this one is combined from, in order."""
        for part in self.parts:
            yield from part.simple()


@dataclass(frozen=True, repr=False)
class AllOf(Selector):
    """What every part matches."""

    parts: tuple[Selector, ...]
    binding: ClassVar[int] = 1

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether all parts match."""
        return all(part.matches(fact) for part in self.parts)

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return " & ".join(_within(self, part, function_text) for part in self.parts)

    def simple(self) -> Iterator[Selector]:
        """Yields the selectors that this one is combined from, in order."""
        for part in self.parts:
            yield from part.simple()


@dataclass(frozen=True, repr=False)
class Not(Selector):
    """What the part does not match."""

    part: Selector
    binding: ClassVar[int] = 2

    def matches(self, fact: ParamFact) -> bool:
        """Returns whether the part does not match."""
        return not self.part.matches(fact)

    def written(self, function_text: Callable[[Any], str]) -> str:
        """Returns the text."""
        return f"~{_within(self, self.part, function_text)}"

    def simple(self) -> Iterator[Selector]:
        """Yields the selectors that this one is combined from, in order."""
        yield from self.part.simple()


def classes_around(fact: ParamFact) -> tuple[type[nn.Module], ...]:
    """Returns the classes of the modules around a parameter, its own module's last."""
    return fact.around if fact.owner is None else (*fact.around, fact.owner)


def _parts(one: Selector, kind: type[AllOf] | type[AnyOf]) -> tuple[Selector, ...]:
    return one.parts if isinstance(one, kind) else (one,)


def _checked(other: Any) -> Selector:
    if isinstance(other, Selector):
        return other
    raise ArgumentTypeError(
        f"{other!r} is {kind_of(other)}, not a selector",
        where="an operand of & or |",
        fix="make one of it first, with selector(...)",
    )


def _within(whole: Selector, part: Selector, function_text: Callable[[Any], str]) -> str:
    text = part.written(function_text)
    # A regular expression goes on to the end of what it stands in.
    return f"({text})" if part.binding < whole.binding or isinstance(part, Regex) else text


def _function_name(function: Any) -> str:
    return f"<function {getattr(function, '__qualname__', None) or repr(function)}>"


def _no_text(function: Any) -> str:
    raise ArgumentTypeError(
        f"{_function_name(function)} is no data: a selector that asks a function has no text",
        where="str(selector)",
        fix="say the same by path, '@Class' or '#role', combined with & | ~",
    )
