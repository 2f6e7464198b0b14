"""Calls of frozen modules while a loss runs: watched, or answered with what is known already.

A call counts where a module that is not frozen calls one that is, by whatever method. The
modules inside the frozen one are its own business. The calls of a loss function come in the
same order each time it is traced, so a call is known by its number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import current_trace

from flaxtrain.errors import ModelError
from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.train.frozen_modules import FrozenModule, FrozenModules
from flaxtrain.tree import Path, flatten, nbytes, path_name
from flaxtrain.typing import Key

__all__ = [
    "AS_THEY_COME",
    "CACHE_FROZEN",
    "AnsweredCalls",
    "Calls",
    "FrozenCall",
    "FrozenFeatures",
    "SeparateCalls",
    "WatchedCall",
    "WatchedCalls",
]

CACHE_FROZEN = "fit(cache_frozen=True)"
"""Where, errors say, features were asked for that can't be cached."""

_ARRAYS = (jax.Array, np.ndarray)


@dataclass(frozen=True)
class FrozenCall:
    """A call of a frozen module, and what it returns.

    Attributes:
        path: the module's path.
        method: the method that is called.
        shapes: shape and dtype of every array that it returns, for one batch.
        tree: the structure (a jax treedef) that these arrays are in.
        needed: which of them the rest of the model, or the loss, reads.
    """

    path: Path
    method: str
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    tree: Any
    needed: tuple[bool, ...]

    @property
    def name(self) -> str:
        """The module's path, and the method where it is not `__call__`."""
        name = path_name(self.path)
        return name if self.method == "__call__" else f"{name}.{self.method}"

    def fits(self, call: MethodCall) -> bool:
        """Whether this is the call that is made."""
        return (self.path, self.method) == (call.path, call.method)


@dataclass(frozen=True)
class FrozenFeatures:
    """What is cached of the frozen modules: a value. Made by `frozen_features`.

    Attributes:
        calls: the calls of frozen modules in one run of the loss function, in their order.

    Example:
        >>> shapes = (jax.ShapeDtypeStruct((16, 4), jnp.float32),) * 2
        >>> tree = jax.tree.structure((0, 0))
        >>> call = FrozenCall(("encoder",), "encode", shapes, tree, needed=(True, False))
        >>> features = FrozenFeatures((call,))
        >>> features.names, features.bytes_per_example
        (('encoder.encode',), 16)
        >>> [float(jnp.max(output)) for output in features.answers([jnp.ones((16, 4))])[0]]
        [1.0, 0.0]
    """

    calls: tuple[FrozenCall, ...]

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of every cached array, for one batch: `[rows, ...]`."""
        return tuple(
            shape
            for call in self.calls
            for shape, needed in zip(call.shapes, call.needed, strict=True)
            if needed
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The calls of which something is cached."""
        return tuple(dict.fromkeys(call.name for call in self.calls if any(call.needed)))

    @property
    def bytes_per_example(self) -> int:
        """Memory that the features of one example take."""
        return sum(nbytes(shape) // shape.shape[0] for shape in self.shapes)

    def answers(self, features: Sequence[Any]) -> list[list[Any]]:
        """Returns what each call returns, for a microbatch too; what nobody reads is zeros."""
        cached = iter(features)
        rows = {self.shapes[0].shape[:1]: features[0].shape[:1]}
        return [
            [
                next(cached)
                if needed
                else jnp.zeros(rows.get(s.shape[:1], s.shape[:1]) + s.shape[1:], s.dtype)
                for s, needed in zip(call.shapes, call.needed, strict=True)
            ]
            for call in self.calls
        ]


class Calls:
    """What becomes of the calls of modules. Here: they run, and nobody watches."""

    def applied(
        self, frozen: FrozenModules, rngs: Mapping[str, Key]
    ) -> AbstractContextManager[dict[str, Key]]:
        """Returns a context in which the model is applied: streams to add to `rngs`.

        Args:
            frozen: the frozen modules.
            rngs: the random streams of the call.
        """
        return nullcontext({})


AS_THEY_COME = Calls()
"""All modules run, at no further cost."""


class _Intercepted(Calls, ABC):
    """Hands the calls of frozen modules to `_call`, in the trace in which this was made.

    Attributes:
        strict: whether calls within another trace are refused, or just made.
    """

    strict = True

    def __init__(self) -> None:
        self._trace = current_trace()
        self._inside = False

    def applied(
        self, frozen: FrozenModules, rngs: Mapping[str, Key]
    ) -> AbstractContextManager[dict[str, Key]]:
        return intercepted_under_jit(partial(self._intercept, frozen), rngs)

    def _intercept(self, frozen: FrozenModules, call: MethodCall) -> Any:
        found = frozen.at(call.path)
        if found is None or self._inside or call.method == "setup":
            return call.run()
        if current_trace() != self._trace:
            if not self.strict:
                return call.run()
            raise ModelError(
                f"the frozen module {path_name(call.path)!r} is called within a "
                "transformation (nn.jit, nn.remat, nn.scan, nn.vmap, jax.vmap, ...)",
                where=CACHE_FROZEN,
                fix="make the frozen part a module of its own, with the transformation inside "
                "it, or leave cache_frozen out",
            )
        self._inside = True
        try:
            return self._answer(found, call)
        finally:
            self._inside = False

    @abstractmethod
    def _answer(self, frozen: FrozenModule, call: MethodCall) -> Any:
        """Returns what a call of a frozen module returns.

        Args:
            frozen: the module, or the one that it is inside of.
            call: the call.
        """


@dataclass
class WatchedCall:
    """One call of a frozen module as it happened: arrays that went in and came out.

    `wrote` has the collections that it wrote to; `opaque` the types of outputs that are no
    arrays.
    """

    frozen: FrozenModule
    path: Path
    method: str
    inputs: list[Any]
    outputs: list[Any]
    tree: Any
    wrote: list[str]
    opaque: list[str]

    def described(self, needed: Sequence[bool]) -> FrozenCall:
        """Returns the call as a value."""
        shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.outputs)
        return FrozenCall(self.path, self.method, shapes, self.tree, tuple(needed))


@dataclass
class WatchedCalls(_Intercepted):
    """Lets the frozen modules run and notes each call.

    Example:
        >>> model, x = nn.Sequential([nn.Dense(2), nn.Dense(3)]), jnp.ones((4, 5))
        >>> variables, watched = model.init(jax.random.key(0), x), WatchedCalls()
        >>> with watched.applied(FrozenModules((FrozenModule(("layers_0",)),)), {}) as rngs:
        ...     y = model.apply(variables, x, rngs=rngs)
        >>> [(call.path, call.outputs[0].shape) for call in watched.calls]
        [(('layers_0',), (4, 2))]
    """

    calls: list[WatchedCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def _answer(self, frozen: FrozenModule, call: MethodCall) -> Any:
        before = _written(call.module)
        result = call.run()
        after = _written(call.module)
        wrote = {path[0] for path, leaf in after.items() if before.get(path) is not leaf}
        leaves, tree = jax.tree.flatten(result)
        inputs = jax.tree.leaves((call.args, call.kwargs))
        self.calls.append(
            WatchedCall(
                frozen,
                call.path,
                call.method,
                [leaf for leaf in inputs if isinstance(leaf, _ARRAYS)],
                [leaf for leaf in leaves if isinstance(leaf, _ARRAYS)],
                tree,
                sorted(wrote),
                [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _ARRAYS)],
            )
        )
        return result


class SeparateCalls(_Intercepted):
    """Keeps the compiler from merging arithmetic across the border of the frozen part.

    It would, say, join the division of a mean with the factor of the dropout that follows, and
    round once instead of twice. With the border closed, a run has the same bits whether its
    features are cached or not.

    Args:
        features: the outputs that make up the border.
    """

    strict = False

    def __init__(self, features: FrozenFeatures) -> None:
        super().__init__()
        self._rest = iter(features.calls)

    def _answer(self, frozen: FrozenModule, call: MethodCall) -> Any:
        known, result = next(self._rest, None), call.run()
        if known is None or not known.fits(call):
            return result
        leaves, tree = jax.tree.flatten(result)
        return tree.unflatten(
            jax.lax.optimization_barrier(leaf) if needed else leaf
            for leaf, needed in zip(leaves, known.needed, strict=True)
        )


class AnsweredCalls(_Intercepted):
    """Answers the calls of frozen modules: none of them runs.

    Args:
        features: what is cached.
        arrays: the cached arrays, `[rows, ...]` each.
    """

    def __init__(self, features: FrozenFeatures, arrays: Sequence[Any]) -> None:
        super().__init__()
        self._answers = iter(zip(features.calls, features.answers(arrays), strict=True))

    def _answer(self, frozen: FrozenModule, call: MethodCall) -> Any:
        known, answer = next(self._answers, (None, []))
        if known is None or not known.fits(call):
            expected = "no further call" if known is None else f"a call of {known.name!r}"
            raise ModelError(
                f"the loss function calls {path_name(call.path)!r}.{call.method}, where at "
                f"first it made {expected}",
                where=CACHE_FROZEN,
                fix="let the loss function call the same modules each time it runs",
            )
        return jax.tree.unflatten(known.tree, answer)


def _written(module: nn.Module) -> dict[Path, Any]:
    """Returns the variables below a module that a call may write to, by collection and path."""
    return flatten({k: v for k, v in module.variables.items() if k != "params"})
