"""Running the modules of one batch again, in order, to see where a value stops being finite.

Every method of every module is intercepted. What `nn.scan`, `nn.while_loop` and `nn.jit`
compile is run by Python instead, one operation after the other, so that calls are seen one by
one and in order. What is traced all the same (the body of `nn.remat`, modules under
`nn.vmap`) tells its values through `jax.pure_callback`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxtrain.params import Facts
from flaxtrain.tree import Path, path_name

__all__ = ["BadModule", "ModuleCalls"]

_NOTED = jax.ShapeDtypeStruct((), np.bool_)


@dataclass(frozen=True)
class BadModule:
    """A call of a module with finite arguments and a result that is not finite.

    Attributes:
        name: the path of the module; empty for the model itself.
        class_name: its class.
        method: the method that was called.
        values: what the result holds: `"NaN"`, `"inf"`, or `"NaN and inf"`.
        dtype: of the result.
        call: which call of this method it was, from 0.
        calls: how many there were.
        layer: the place in its stack, for modules under `nn.scan` or `nn.vmap`; else empty.
        layers: the size of that stack.
    """

    name: str
    class_name: str
    method: str
    values: str
    dtype: str
    call: int = 0
    calls: int = 1
    layer: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        method = "" if self.method == "__call__" else f".{self.method}"
        place = place_in_stack(self.layer, self.layers)
        if not place and self.calls > 1:
            place = f", call {self.call} of 0..{self.calls - 1}"
        name = self.name or "the model itself"
        return (
            f"{name} ({self.class_name}{method}){place}: finite arguments, "
            f"{self.values} in its {self.dtype} result"
        )


def place_in_stack(layer: tuple[int, ...], layers: tuple[int, ...]) -> str:
    """Returns the place in a stack as text.

    Example:
        >>> place_in_stack((1,), (3,)), place_in_stack((), ())
        (', layer 1 of 0..2', '')
    """
    if not layer:
        return ""
    shown = [f"{index} of 0..{size - 1}" for index, size in zip(layer, layers, strict=True)]
    return f", layer {', '.join(shown)}"


@dataclass(frozen=True)
class _Event:
    """The end of one call, with concrete values.

    `traced` is the number of the call as Python saw it; one such call is several events where
    its body is run several times.
    """

    traced: int
    path: Path
    class_name: str
    method: str
    dtype: str
    finite_arguments: bool
    has_nan: bool
    has_inf: bool

    @property
    def breaks(self) -> bool:
        return self.finite_arguments and (self.has_nan or self.has_inf)

    @property
    def key(self) -> tuple[Path, str]:
        return self.path, self.method


@dataclass
class ModuleCalls:
    """The calls of all modules while a model is run under `watched`.

    Example:
        >>> calls = ModuleCalls()
        >>> model = nn.Sequential([nn.Dense(2), jnp.log, nn.Dense(2)])
        >>> x = jnp.zeros((1, 2))
        >>> variables = model.init(jax.random.key(0), x)
        >>> output = calls.watched(lambda: model.apply(variables, x))
        >>> print(calls.breaks()[0])
        the model itself (Sequential): finite arguments, NaN and inf in its float32 result
    """

    _events: list[_Event] = field(default_factory=list)
    _traced: int = 0

    def watched(self, run: Callable[[], Any]) -> Any:
        """Runs a function, and notes the calls of modules in it; returns its result."""
        with jax.disable_jit(), nn.intercept_methods(self._intercept):
            return run()

    def breaks(self, facts: Facts | None = None) -> tuple[BadModule, ...]:
        """Returns where values stop being finite, in the order of execution.

        A module around one that was named is left out.

        Args:
            facts: the table of parameters, from which stacks are known.
        """
        found: dict[tuple[Path, str], BadModule] = {}
        for index, event in enumerate(self._events):
            around = any(path[: len(event.path)] == event.path for path, _ in found)
            if event.breaks and not around:
                found[event.key] = self._described(index, facts)
        return tuple(found.values())

    def _described(self, index: int, facts: Facts | None) -> BadModule:
        event = self._events[index]
        kinds = [kind for kind, there in _kinds(event) if there]
        same = [other for other in self._events if other.key == event.key]
        call = sum(other.key == event.key for other in self._events[:index])
        layers = _stack(event.path, facts)
        return BadModule(
            name=path_name(event.path),
            class_name=event.class_name,
            method=event.method,
            values=" and ".join(kinds),
            dtype=event.dtype,
            call=call,
            calls=len(same),
            **_layer(same, call, layers),
        )

    def _intercept(
        self,
        following: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        number, self._traced = self._traced, self._traced + 1
        result = following(*args, **kwargs)
        scope, arrays = context.module.scope, _inexact(result)
        if scope is None or not arrays:
            return result
        note = partial(
            self._note,
            number,
            scope.path,
            type(context.module).__name__,
            context.method_name,
            ", ".join(sorted({array.dtype.name for array in arrays})),
        )
        given = _inexact((args, kwargs))
        if any(isinstance(array, Tracer) for array in (*arrays, *given)):
            # Not `jax.debug.callback`: Flax's scan traces its body once more to see that what
            # is broadcast depends on nothing in it, and takes any effect for such a thing. A
            # callback without an effect runs only where it has a result.
            jax.pure_callback(note, _NOTED, given, arrays, vmap_method="sequential")
        else:
            note(given, arrays)
        return result

    def _note(
        self,
        number: int,
        path: Path,
        class_name: str,
        method: str,
        dtype: str,
        given: list[Any],
        result: list[Any],
    ) -> np.bool_:
        # By numpy: jax would compile each test for each shape.
        finite = all(np.isfinite(array).all() for array in map(np.asarray, given))
        arrays = [np.asarray(array) for array in result]
        has_nan = any(np.isnan(array).any() for array in arrays)
        has_inf = any(np.isinf(array).any() for array in arrays)
        self._events.append(
            _Event(number, path, class_name, method, dtype, finite, has_nan, has_inf)
        )
        return np.True_


def _kinds(event: _Event) -> tuple[tuple[str, bool], ...]:
    return ("NaN", event.has_nan), ("inf", event.has_inf)


def _inexact(tree: Any) -> list[Any]:
    """Returns the floating and complex arrays in a tree."""
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _stack(path: Path, facts: Facts | None) -> tuple[int, ...]:
    """Returns the size of the stack that a module is in: the axes that lifts have added.

    A module without parameters is in the stack of what is beside it.
    """
    for end in range(len(path), 0, -1):
        inside = [f for f in (facts or {}).values() if f.path[:end] == path[:end]]
        found = {tuple(fact.shape[axis] for axis in fact.lifted_axes) for fact in inside}
        if found:
            return min(found, key=len)
    return ()


def _layer(same: list[_Event], call: int, layers: tuple[int, ...]) -> dict[str, Any]:
    """Returns the place in the stack of one of a module's calls, where it can be known."""
    size = math.prod(layers)
    if size < 2 or len(same) % size:
        return {}
    runs = Counter(event.traced for event in same)
    if set(runs.values()) == {size}:
        # One call, whose body was run for each layer.
        number = sum(event.traced == same[call].traced for event in same[:call])
    else:
        number = call // (len(same) // size)
    layer = tuple(int(index) for index in np.unravel_index(number, layers))
    return {"layer": layer, "layers": layers}
