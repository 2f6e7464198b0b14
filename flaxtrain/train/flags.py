"""Setting the flags of a module from outside: train flags, and those about statistics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxtrain.params.intercept import MethodCall

# Nothing here is public: `FrozenModules` is.
__all__ = []

TRAIN_FLAGS: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
}
"""Arguments that switch between training and evaluation, with their value in training."""

EVALUATION: Mapping[str, bool] = {name: not value for name, value in TRAIN_FLAGS.items()}
"""The values of `TRAIN_FLAGS` in evaluation."""


def force_attributes(module: nn.Module, forced: Mapping[str, bool]) -> None:
    """Sets the flags that are attributes. A module that is applied is flax's own copy."""
    for name, value in forced.items():
        if isinstance(_stored(module, name), (bool, np.bool_, jax.Array)):
            object.__setattr__(module, name, value)


def forced_call(call: MethodCall, forced: Mapping[str, bool]) -> MethodCall:
    """Sets the flags that an intercepted method takes: by position, by name, or left out.

    A flag that is None stays so where an attribute has its value: `nn.merge_param` raises if
    both are given. A lifted method (of `nn.scan(Block)`, say) is intercepted within the lift.

    Args:
        call: the intercepted call.
        forced: values by name; names that the method doesn't take are passed over.

    Returns:
        The call that is to be made.
    """
    args, kwargs = call.args, call.kwargs
    parameters = inspect.signature(call.context.orig_method).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positions = [name for name, kind in kinds.items() if kind in by_position]
    given = {**dict(zip(positions, args, strict=False)), **kwargs}

    def changes(name: str) -> bool:
        if name not in given and kinds.get(name) not in by_name:
            return False
        value = given[name] if name in given else parameters[name].default
        return value is not None or _stored(call.module, name) is None

    changed = {name: value for name, value in forced.items() if changes(name)}
    first = [changed.pop(name, arg) for name, arg in zip(positions, args, strict=False)]
    return call._replace(args=(*first, *args[len(first) :]), kwargs={**kwargs, **changed})


def _stored(module: nn.Module, name: str) -> Any:
    """Returns what is stored under a name; a plain `getattr` would run the module's `setup`."""
    return inspect.getattr_static(module, name, None)
