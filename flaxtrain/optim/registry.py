"""The optimizers that have a name: what `OptSpec("adamw", ...)` looks up."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flaxtrain.optim.adadelta import adadelta, adadelta_stages
from flaxtrain.optim.adafactor import adafactor, adafactor_stages
from flaxtrain.optim.adagrad import adagrad, adagrad_rule
from flaxtrain.optim.adam import adam, adam_rule, nadam, nadam_rule
from flaxtrain.optim.adamax import adamax, adamax_rule, adamaxw
from flaxtrain.optim.adamw import adamw, nadamw
from flaxtrain.optim.adan import adan, adan_rule
from flaxtrain.optim.amsgrad import amsgrad, amsgrad_rule
from flaxtrain.optim.belief import adabelief, adabelief_rule
from flaxtrain.optim.fromage import fromage, fromage_stages
from flaxtrain.optim.lamb import lamb, lamb_stages
from flaxtrain.optim.lars import lars, lars_stages
from flaxtrain.optim.lion import lion, lion_rule
from flaxtrain.optim.noise import noisy_sgd, noisy_sgd_stages
from flaxtrain.optim.novograd import novograd, novograd_stages
from flaxtrain.optim.optimistic import (
    optimistic_gradient_descent,
    optimistic_gradient_descent_rule,
)
from flaxtrain.optim.optimistic_adam import (
    optimistic_adam,
    optimistic_adam_stages,
    optimistic_adam_v2,
    optimistic_adam_v2_stages,
)
from flaxtrain.optim.radam import radam, radam_rule
from flaxtrain.optim.rmsprop import rmsprop, rmsprop_stages
from flaxtrain.optim.rprop import rprop, rprop_stages
from flaxtrain.optim.rule import Rule
from flaxtrain.optim.sgd import sgd, sgd_rule
from flaxtrain.optim.shampoo import shampoo, shampoo_rule
from flaxtrain.optim.sign import sign_sgd, sign_sgd_rule, signum, signum_stages
from flaxtrain.optim.sm3 import sm3, sm3_rule
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation
from flaxtrain.optim.yogi import yogi, yogi_rule

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
        fixed: hyperparameters that look like numbers and are none: a key, an offset of counts.
        initial_only: numbers that are read only when slots begin: later changes do nothing.

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
    fixed: tuple[str, ...] = ()
    initial_only: tuple[str, ...] = ()

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
        if self.uses_learning_rate:
            hyperparameters["learning_rate"] = learning_rate
        return self.make(**hyperparameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """The hyperparameters and their defaults."""
        return {name: self._parameters[name].default for name in self.hyperparameters}

    @property
    def uses_learning_rate(self) -> bool:
        """Whether the method uses the learning rate at another place than `RATE`."""
        return "learning_rate" in self._parameters

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.make).parameters


def _then_decay(rule: Callable[..., Rule]) -> Callable[..., tuple[Stage, ...]]:
    """Returns the stages of most optimizers: the rule, weight decay, learning rate."""

    @functools.wraps(rule)
    def stages(*args: Any, **kwargs: Any) -> tuple[Stage, ...]:
        return rule(*args, **kwargs), DECAY, RATE

    return stages


def _entry(
    factory: Any,
    make: Callable[..., tuple[Stage, ...]],
    *,
    fixed: tuple[str, ...] = (),
    initial_only: tuple[str, ...] = (),
) -> NamedOptimizer:
    parameters = inspect.signature(factory).parameters
    decay = parameters["weight_decay"].default if "weight_decay" in parameters else None
    doc = (inspect.getdoc(factory) or "").splitlines()[0]
    return NamedOptimizer(
        factory.__name__, factory, make, decay or 0.0, doc, fixed, initial_only
    )


_ENTRIES = (
    _entry(adabelief, _then_decay(adabelief_rule)),
    _entry(adadelta, adadelta_stages),
    _entry(adafactor, adafactor_stages, fixed=("decay_offset",)),
    _entry(adagrad, _then_decay(adagrad_rule), initial_only=("initial_accumulator_value",)),
    _entry(adam, _then_decay(adam_rule)),
    _entry(adamax, _then_decay(adamax_rule)),
    _entry(adamaxw, _then_decay(adamax_rule)),
    _entry(adamw, _then_decay(adam_rule)),
    _entry(adan, _then_decay(adan_rule)),
    _entry(amsgrad, _then_decay(amsgrad_rule)),
    _entry(fromage, fromage_stages),
    _entry(lamb, lamb_stages),
    _entry(lars, lars_stages),
    _entry(lion, _then_decay(lion_rule)),
    _entry(nadam, _then_decay(nadam_rule)),
    _entry(nadamw, _then_decay(nadam_rule)),
    _entry(noisy_sgd, noisy_sgd_stages, fixed=("key",)),
    _entry(novograd, novograd_stages),
    _entry(optimistic_adam, optimistic_adam_stages),
    _entry(optimistic_adam_v2, optimistic_adam_v2_stages),
    _entry(optimistic_gradient_descent, _then_decay(optimistic_gradient_descent_rule)),
    _entry(radam, _then_decay(radam_rule)),
    _entry(rmsprop, rmsprop_stages, initial_only=("initial_scale",)),
    _entry(rprop, rprop_stages, initial_only=("learning_rate",)),
    _entry(sgd, _then_decay(sgd_rule)),
    _entry(shampoo, _then_decay(shampoo_rule)),
    _entry(sign_sgd, _then_decay(sign_sgd_rule)),
    _entry(signum, signum_stages),
    _entry(sm3, _then_decay(sm3_rule)),
    _entry(yogi, _then_decay(yogi_rule), initial_only=("initial_accumulator_value",)),
)

NAMED: Mapping[str, NamedOptimizer] = MappingProxyType({e.name: e for e in _ENTRIES})
"""Every optimizer that can be asked for by name."""
