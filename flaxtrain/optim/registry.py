"""The optimizers that have a name: what `OptSpec("adamw", ...)` looks up."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flaxtrain.optim.adam import adam, adam_rule
from flaxtrain.optim.adamw import adamw
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.sgd import sgd, sgd_rule
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation

__all__ = ["NAMED", "NamedOptimizer"]


@dataclass(frozen=True)
class NamedOptimizer:
    """One entry of the registry.

    Attributes:
        name: the name, that of the function in `flaxtrain.optim`.
        factory: that function.
        make: makes the stages from the optimizer's own hyperparameters (all but weight decay
            and mask), checks them, and answers a misspelt one with the nearest.
        weight_decay: the factory's default; 0.0 where it has no such argument.
        doc: one line.

    Example:
        >>> NAMED["adamw"].weight_decay, NAMED["adamw"].stages(0.1, b1=0.8)[0].b1
        (0.0001, 0.8)
        >>> NAMED["sgd"].hyperparameters
        ('momentum', 'nesterov', 'accumulator_dtype')
    """

    name: str
    factory: Callable[..., GradientTransformation]
    make: Callable[..., tuple[Stage, ...]]
    weight_decay: float
    doc: str

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names that `stages` accepts."""
        return tuple(name for name in self._parameters if name != "learning_rate")

    def stages(self, learning_rate: Any, **hyperparameters: Any) -> tuple[Stage, ...]:
        """Returns what the optimizer does, in order.

        Args:
            learning_rate: a number or a schedule; only methods that use it at another place
                than `RATE` look at it.
            **hyperparameters: the optimizer's own.

        Raises:
            ArgumentError: a value is out of range.
            ArgumentTypeError: a value has the wrong type, or an argument is not known.
        """
        if "learning_rate" in self._parameters:
            hyperparameters["learning_rate"] = learning_rate
        return self.make(**hyperparameters)

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.make).parameters


def _then_decay(rule: Callable[..., Rule]) -> Callable[..., tuple[Stage, ...]]:
    """Returns the stages of most optimizers: the rule, weight decay, learning rate."""

    @functools.wraps(rule)
    def stages(*args: Any, **kwargs: Any) -> tuple[Stage, ...]:
        return rule(*args, **kwargs), DECAY, RATE

    return stages


def _entry(factory: Any, make: Callable[..., tuple[Stage, ...]]) -> NamedOptimizer:
    parameters = inspect.signature(factory).parameters
    decay = parameters["weight_decay"].default if "weight_decay" in parameters else None
    doc = (inspect.getdoc(factory) or "").splitlines()[0]
    return NamedOptimizer(factory.__name__, factory, make, decay or 0.0, doc)


_ENTRIES = (
    _entry(adam, _then_decay(adam_rule)),
    _entry(adamw, _then_decay(adam_rule)),
    _entry(sgd, _then_decay(sgd_rule)),
)

NAMED: Mapping[str, NamedOptimizer] = MappingProxyType({e.name: e for e in _ENTRIES})
"""Every optimizer that can be asked for by name."""
