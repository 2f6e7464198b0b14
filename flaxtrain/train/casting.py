"""Casting a model's parameters, inputs and outputs, and setting the dtypes of its modules.

A call of the model under a policy p, c, o:
    params   each cast to the dtype in which its module computes; stored in p
    inputs   floating ones cast to c
    modules  a `dtype` field that the model leaves None is c while the call lasts
    outputs  floating ones cast to o
A module of an override computes in its own c: its floating inputs are cast to it, its outputs
to the override's o, or back to the dtype of the module that called it.

A module whose `dtype` the model itself sets keeps it, with its parameters as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.params import Facts, ParamFact
from flaxtrain.params.intercept import MethodCall, attribute, intercepted_under_jit
from flaxtrain.precision import Policy, Precision
from flaxtrain.tree import Path, key_of
from flaxtrain.typing import DTypeLike, Key, Params

__all__ = ["AS_WRITTEN", "Casts", "PolicyCasts", "Region", "SeenModule", "has_dtype_field"]


@dataclass(frozen=True)
class SeenModule:
    """A module as an abstract run of the model has met it.

    Attributes:
        name: the name of its class.
        dtype: the `dtype` that the model gives it; None where it leaves that open.
        has_dtype: whether there is such a field.
    """

    name: str
    dtype: np.dtype[Any] | None
    has_dtype: bool

    @property
    def is_open(self) -> bool:
        """Whether its dtype is left to the policy."""
        return self.has_dtype and self.dtype is None


@dataclass(frozen=True)
class Region:
    """What holds in a module: the dtype that it computes in, and that of what it puts out.

    `output` is None for the dtype of the module that calls it.
    """

    compute: np.dtype[Any]
    output: np.dtype[Any] | None = None


@dataclass(frozen=True, eq=False)
class Casts:
    """What becomes of dtypes when a model is called. Here: nothing, at no cost.

    Attributes:
        precision: the policy.
    """

    precision: Precision

    def stored(self, params: Params) -> Params:
        """Returns parameters in the dtypes in which they are stored."""
        return params

    def facts(self, facts: Facts) -> Facts:
        """Returns the table of parameters with these dtypes."""
        return facts

    def params(self, params: Params) -> Params:
        """Returns parameters as the modules take them."""
        return params

    def inputs(self, tree: Any) -> Any:
        """Returns the arguments of a call as the model takes them."""
        return tree

    def outputs(self, tree: Any) -> Any:
        """Returns what the model puts out, as the loss function takes it."""
        return tree

    def applied(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns a context in which the model is applied: streams to add to `rngs`.

        Args:
            rngs: the random streams of the call.
        """
        return nullcontext({})


AS_WRITTEN = Casts(Precision())
"""The model runs as it was written: nothing is cast, no module is touched."""


@dataclass(frozen=True, eq=False)
class PolicyCasts(Casts):
    """Casts by a policy; made by `flaxtrain.train.precision.casts_of`.

    Attributes:
        parameters: the policy of every parameter, by path.
        regions: the modules that may compute in another dtype than those around them, by path.
        modules: all modules that were seen.
        watched: whether someone looks on: methods under `nn.jit` are then run once more, also
            where an earlier run with the same settings has left a program.
    """

    parameters: Mapping[Path, Policy]
    regions: Mapping[Path, Region]
    modules: Mapping[Path, SeenModule]
    watched: bool = False

    @property
    def around(self) -> Region:
        """What holds in the model as a whole."""
        return self.regions.get((), Region(_of(self.precision.main.compute)))

    def region_at(self, path: Path) -> Region:
        """Returns what holds in a module that is called by the one that has it."""
        above = (path[:end] for end in range(len(path), 0, -1))
        known = (self.regions[name] for name in above if name in self.regions)
        return next(known, self.around)

    def stored(self, params: Params) -> Params:
        """Returns parameters in the dtypes in which they are stored."""

        def cast(keys: Any, leaf: Any) -> Any:
            return _cast(leaf, self._policy(keys).param)

        return jax.tree_util.tree_map_with_path(cast, params)

    def facts(self, facts: Facts) -> Facts:
        """Returns the table of parameters with these dtypes."""

        def stored(fact: ParamFact) -> ParamFact:
            if not jnp.issubdtype(fact.dtype, jnp.floating):
                return fact
            policy = self.parameters.get(fact.path, self.precision.main)
            return replace(fact, dtype=_of(policy.param))

        return replace(facts, params=tuple(map(stored, facts.params)))

    def params(self, params: Params) -> Params:
        """Returns parameters in the dtypes that are computed with."""

        def cast(keys: Any, leaf: Any) -> Any:
            path = tuple(map(key_of, keys))
            return leaf if path in self._kept else _cast(leaf, self._policy(keys).compute)

        return jax.tree_util.tree_map_with_path(cast, params)

    def inputs(self, tree: Any) -> Any:
        """Returns floating arguments in the dtype of the model, unless it has set its own."""
        return tree if () in self._explicit else _cast_tree(tree, self.around.compute)

    def outputs(self, tree: Any) -> Any:
        """Returns floating outputs in the policy's `o`."""
        return _cast_tree(tree, self.precision.main.output)

    def _policy(self, keys: Any) -> Policy:
        return self.parameters.get(tuple(map(key_of, keys)), self.precision.main)

    @cached_property
    def _explicit(self) -> frozenset[Path]:
        """The modules that have set their own dtype."""
        return frozenset(path for path, seen in self.modules.items() if seen.dtype is not None)

    @cached_property
    def _kept(self) -> frozenset[Path]:
        """The parameters that such a module casts itself."""
        return frozenset(path for path in self.parameters if path[:-1] in self._explicit)

    @cached_property
    def _settings(self) -> str:
        return repr((sorted(self.regions.items()), self.around, sorted(self._explicit)))

    def applied(self, rngs: Mapping[str, Key]) -> AbstractContextManager[dict[str, Key]]:
        """Returns a context in which the modules of a model that is applied have their dtypes.

        Args:
            rngs: the random streams of the call.
        """
        settings = None if self.watched else self._settings
        return intercepted_under_jit(_Call(self).intercept, rngs, settings)


class _Call:
    """One call of the model: knows what holds in the module that is running."""

    def __init__(self, casts: PolicyCasts) -> None:
        self._casts, self._now = casts, casts.around

    def intercept(self, call: MethodCall) -> Any:
        casts, around = self._casts, self._now
        seen = casts.modules.get(call.path)
        if seen is not None and seen.dtype is not None:
            return call.run()
        here = casts.regions.get(call.path, around)
        with _dtype_of(call.module, here.compute, known=seen is not None):
            if here == around or not _is_entered(call):
                return _same_carry(call, call.run())
            self._now = here
            try:
                args, kwargs = _cast_tree((call.args, call.kwargs), here.compute)
                result = call.following(*args, **kwargs)
            finally:
                self._now = around
            return _same_carry(call, _cast_tree(result, here.output or around.compute))


def _is_entered(call: MethodCall) -> bool:
    """Whether a method of a module is called: no setup, and no function lifted on it."""
    return call.method != "setup" and call.is_own_method


def _same_carry(call: MethodCall, result: Any) -> Any:
    """Returns what a recurrent cell returns, with the carry in the dtype in which it came.

    Cells make their first carry themselves, in the dtype of their parameters, and a scan over
    time wants the same at every step.
    """
    if not isinstance(call.module, nn.RNNCellBase) or call.method != "__call__":
        return result
    if not call.args or not isinstance(result, tuple):
        return result
    carry = jax.tree.map(lambda new, old: _cast(new, old.dtype), result[0], call.args[0])
    return carry, *result[1:]


def _dtype_of(
    module: nn.Module, dtype: np.dtype[Any], *, known: bool
) -> AbstractContextManager[None]:
    """Sets a module's dtype for as long as one of its methods runs.

    Args:
        module: the module.
        dtype: what to set.
        known: whether the model is known to leave the dtype open. What stands there then is
            None, or what the module around hands on of its own.
    """
    if has_dtype_field(module) and (known or getattr(module, "dtype", None) is None):
        return attribute(module, "dtype", dtype)
    return nullcontext()


def has_dtype_field(module: nn.Module) -> bool:
    """Whether a module has a field `dtype`, given or not.

    Example:
        >>> has_dtype_field(nn.Dense(1)), has_dtype_field(nn.Dropout(0.1))
        (True, False)
    """
    return any(field.name == "dtype" for field in fields(module))


def _cast_tree(tree: Any, dtype: DTypeLike | None) -> Any:
    return jax.tree.map(lambda leaf: _cast(leaf, dtype), tree)


def _cast(leaf: Any, dtype: DTypeLike | None) -> Any:
    """Casts arrays of a floating dtype; all else stays as it is."""
    if dtype is None or not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.asarray(leaf).astype(dtype)


def _of(dtype: Any) -> np.dtype[Any]:
    assert dtype is not None, "the policy of a model has all three dtypes"
    return np.dtype(dtype)
