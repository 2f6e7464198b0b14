"""Running the modules of one batch again, in order, to see where a value stops being finite.

Every method of every module is intercepted. What `nn.scan`, `nn.while_loop` and `nn.jit`
compile is run by Python instead, one operation after the other, so that calls are seen one by
one and in order. What is traced all the same (the body of `nn.remat`, modules under
`nn.vmap`) tells its values through `jax.pure_callback`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxtrain.params import Facts, ParamFact
from flaxtrain.params.intercept import MethodCall, intercepted
from flaxtrain.tree import Path, path_name

__all__ = ["BadModule", "ModuleCalls"]

_NOTED = jax.ShapeDtypeStruct((), np.bool_)


@dataclass(frozen=True)
class BadModule:
    """A call of a module with finite arguments and a result that is not finite.

    Or with infinite arguments, such as a mask, and NaN in its result.

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
        finite_arguments: whether no argument was infinite.
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
    finite_arguments: bool = True

    def __str__(self) -> str:
        method = "" if self.method == "__call__" else f".{self.method}"
        place = place_in_stack(self.layer, self.layers)
        if not place and self.calls > 1:
            place = f", call {self.call} of 0..{self.calls - 1}"
        name = self.name or "the model itself"
        given = "finite" if self.finite_arguments else "infinite"
        return (
            f"{name} ({self.class_name}{method}){place}: {given} arguments, "
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
class _Site:
    """A call of a module, as it is seen while it is traced, if it is.

    `ranks` are those of its arguments and results: what arrays have beyond them at run time are
    the axes of `jax.vmap`, of which the tracing knows nothing.
    """

    path: Path
    class_name: str
    method: str
    dtype: str
    ranks: tuple[list[int], list[int]]

    @property
    def key(self) -> tuple[Path, str]:
        return self.path, self.method


@dataclass(frozen=True)
class _Event:
    """The end of one call, with concrete values; under `jax.vmap` one for each lane."""

    site: _Site
    lane: tuple[int, ...]
    lanes: tuple[int, ...]
    given_nan: bool
    given_inf: bool
    has_nan: bool
    has_inf: bool

    @property
    def breaks(self) -> bool:
        given = self.given_nan or self.given_inf
        return not given and (self.has_nan or self.has_inf)

    @property
    def makes_nan(self) -> bool:
        return self.given_inf and self.has_nan and not self.given_nan


class _OutOfTimeError(Exception):
    """The run takes too long."""


@dataclass
class ModuleCalls:
    """The calls of all modules while a model is run under `watched`.

    Args:
        seconds: after so many the run is given up: one operation after the other, a recurrent
            network of thousands of steps takes minutes.
        clock: returns the time in seconds.

    Attributes:
        gave_up: whether it was. What was seen until then is known.

    Example:
        >>> import flax.linen as nn
        >>> calls = ModuleCalls()
        >>> model = nn.Sequential([nn.Dense(2), jnp.log, nn.Dense(2)])
        >>> x = jnp.zeros((1, 2))
        >>> variables = model.init(jax.random.key(0), x)
        >>> output = calls.watched(lambda: model.apply(variables, x))
        >>> print(calls.breaks()[0])
        the model itself (Sequential): finite arguments, NaN and inf in its float32 result
    """

    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    gave_up: bool = False
    _until: float = math.inf
    _events: list[_Event] = field(default_factory=list)

    def watched(self, run: Callable[[], Any]) -> Any:
        """Runs a function, and notes the calls of modules in it.

        Returns:
            What the function returns; None where it was given up.
        """
        self._until = self.clock() + self.seconds
        try:
            with jax.disable_jit(), intercepted(self._intercept):
                return run()
        except _OutOfTimeError:
            self.gave_up = True
            return None

    def breaks(self, facts: Facts | None = None) -> tuple[BadModule, ...]:
        """Returns where values stop being finite, in the order of execution.

        A module around one that was named is left out. The list ends with the first module
        that makes NaN of infinite arguments, such as a mask, if there is one. It is looked for
        inside the named modules; everywhere, where none is named.

        Args:
            facts: the table of parameters, from which stacks are known.
        """
        found: dict[tuple[Path, str], BadModule] = {}
        for index, event in enumerate(self._events):
            around = any(path[: len(event.site.path)] == event.site.path for path, _ in found)
            if event.breaks and not around:
                found[event.site.key] = self._described(index, facts)
        named = [path for path, _ in found] or [()]
        for index, event in enumerate(self._events):
            inside = any(event.site.path[: len(path)] == path for path in named)
            if event.makes_nan and inside and event.site.key not in found:
                return (*found.values(), self._described(index, facts))
        return tuple(found.values())

    def _described(self, index: int, facts: Facts | None) -> BadModule:
        event = self._events[index]
        site = event.site
        kinds = [kind for kind, there in _kinds(event) if there]
        same = [e for e in self._events if (e.site.key, e.lane) == (site.key, event.lane)]
        number = next(i for i, other in enumerate(same) if other is event)
        return BadModule(
            name=path_name(site.path),
            class_name=site.class_name,
            method=site.method,
            values=" and ".join(kinds),
            dtype=site.dtype,
            call=number,
            calls=len(same),
            finite_arguments=not event.given_inf,
            **_layer(event, number, len(same), _stack(site.path, facts)),
        )

    def _intercept(self, call: MethodCall) -> Any:
        if self.clock() > self._until:
            raise _OutOfTimeError
        result = call.run()
        arrays = _inexact(result)
        if not arrays:
            return result
        given = _inexact((call.args, call.kwargs))
        site = _Site(
            call.path,
            type(call.module).__name__,
            call.method,
            ", ".join(sorted({array.dtype.name for array in arrays})),
            ([array.ndim for array in given], [array.ndim for array in arrays]),
        )
        note = partial(self._note, site)
        if any(isinstance(array, Tracer) for array in (*arrays, *given)):
            # Not `jax.debug.callback`: Flax's scan traces its body once more to see that what
            # is broadcast depends on nothing in it, and takes any effect for such a thing. A
            # callback without an effect runs only where it has a result.
            jax.pure_callback(note, _NOTED, given, arrays, vmap_method="expand_dims")
        else:
            note(given, arrays)
        return result

    def _note(self, site: _Site, given: list[Any], result: list[Any]) -> np.ndarray:
        # By numpy: jax would compile each test for each shape.
        pairs = list(zip(site.ranks, (given, result), strict=True))
        tests = [_any(test, *pair) for pair in pairs for test in (np.isnan, np.isinf)]
        tests = np.broadcast_arrays(*tests)
        lanes = tests[0].shape
        self._events += [
            _Event(site, lane, lanes, *(bool(test[lane]) for test in tests))
            for lane in np.ndindex(lanes)
        ]
        return np.ones(lanes, np.bool_)


def _any(test: Callable[..., Any], ranks: list[int], arrays: list[Any]) -> np.ndarray:
    """Returns whether any value passes a test, for each lane of `jax.vmap`, outermost first."""
    found = np.zeros((), np.bool_)
    for rank, array in zip(ranks, map(np.asarray, arrays), strict=True):
        own = tuple(range(array.ndim - rank, array.ndim))
        found = np.asarray(found | test(array).any(axis=own))
    return found


def _kinds(event: _Event) -> tuple[tuple[str, bool], ...]:
    return ("NaN", event.has_nan), ("inf", event.has_inf)


def _inexact(tree: Any) -> list[Any]:
    """Returns the floating and complex arrays in a tree."""
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _stack(path: Path, facts: Facts | None) -> ParamFact | None:
    """Returns a parameter of the stack that a module is in, from which its axes are known.

    A module without parameters is in the stack of what is beside it.
    """
    for end in range(len(path), 0, -1):
        inside = [f for f in (facts or {}).values() if f.path[:end] == path[:end]]
        if inside:
            return min(inside, key=lambda fact: len(fact.lifted_axes))
    return None


def _layer(event: _Event, number: int, calls: int, stack: ParamFact | None) -> dict[str, Any]:
    """Returns the place in the stack of one of a module's calls, where it can be known.

    Layers of a scan follow one another, those of a vmap are lanes.
    """
    if stack is None or not stack.lifted_axes:
        return {}
    scanned = [axis for axis in stack.scan_axes if axis in stack.lifted_axes]
    others = [axis for axis in stack.lifted_axes if axis not in scanned]
    shape = stack.shape
    lengths = tuple(shape[axis] for axis in scanned)
    size = math.prod(lengths)
    known = event.lanes[: len(others)] == tuple(shape[axis] for axis in others)
    if not known or size == 0 or calls % size:
        return {}
    turn = np.unravel_index(number // (calls // size), lengths) if lengths else ()
    places = dict(zip(others, event.lane, strict=False))
    for axis, place in zip(scanned, turn, strict=True):
        last = shape[axis] - 1
        places[axis] = int(last - place if axis in stack.reversed_axes else place)
    return {
        "layer": tuple(places[axis] for axis in stack.lifted_axes),
        "layers": tuple(shape[axis] for axis in stack.lifted_axes),
    }
