"""The type checker of the tests: beartype, told what it can't see from a single function.

- jaxtyping decorates functions one by one: `Self` has no class to refer to, and is anything.
- An int is a float, as everywhere in Python's type system.
- Constructors are not checked: jax rebuilds dataclasses with whatever stands at the leaves (a
  tracer, a shape, a plain object), and what users pass to them is judged by our own errors.

A protocol in an annotation must be `runtime_checkable`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

_SETTINGS = BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its annotations checked on every call."""
    if getattr(function, "__name__", "") == "__init__":
        return function
    return beartype(function, conf=_SETTINGS)
