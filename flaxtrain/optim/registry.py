"""The optimizers that have a name: what `OptSpec("adamw", ...)` looks up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flaxtrain.optim.adam import adam, adam_rule
from flaxtrain.optim.adamw import adamw
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.sgd import sgd, sgd_rule
from flaxtrain.optim.transform import GradientTransformation

__all__ = ["NAMED", "NamedOptimizer"]


@dataclass(frozen=True)
class NamedOptimizer:
    """One entry of the registry.

    Attributes:
        name: the name, that of the function in `flaxtrain.optim`.
        factory: that function.
        rule: makes the rule from the optimizer's own hyperparameters (all but learning rate,
            weight decay and mask), checks them, and answers a misspelt one with the nearest.
        weight_decay: the factory's default; 0.0 where it has no such argument.
        doc: one line.

    Example:
        >>> NAMED["adamw"].weight_decay, NAMED["adamw"].rule(b1=0.8).b1
        (0.0001, 0.8)
        >>> NAMED["sgd"].hyperparameters
        ('momentum', 'nesterov', 'accumulator_dtype')
    """

    name: str
    factory: Callable[..., GradientTransformation]
    rule: Callable[..., Rule]
    weight_decay: float
    doc: str

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names that `rule` accepts."""
        return tuple(inspect.signature(self.rule).parameters)


def _entry(factory: Any, rule: Callable[..., Rule]) -> NamedOptimizer:
    parameters = inspect.signature(factory).parameters
    decay = parameters["weight_decay"].default if "weight_decay" in parameters else 0.0
    doc = (inspect.getdoc(factory) or "").splitlines()[0]
    return NamedOptimizer(factory.__name__, factory, rule, decay, doc)


_ENTRIES = (_entry(adam, adam_rule), _entry(adamw, adam_rule), _entry(sgd, sgd_rule))

NAMED: Mapping[str, NamedOptimizer] = MappingProxyType({e.name: e for e in _ENTRIES})
"""Every optimizer that can be asked for by name."""
