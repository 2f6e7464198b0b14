"""The names under which schedules are written as data; nothing else is looked up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.schedules.base import Schedule
from flaxtrain.schedules.compose import join_schedules
from flaxtrain.schedules.constant import constant_schedule
from flaxtrain.schedules.cosine import cosine_decay_schedule
from flaxtrain.schedules.exponential import exponential_decay
from flaxtrain.schedules.inverse_sqrt import inverse_sqrt_schedule
from flaxtrain.schedules.onecycle import cosine_onecycle_schedule, linear_onecycle_schedule
from flaxtrain.schedules.piecewise import (
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
)
from flaxtrain.schedules.polynomial import linear_schedule, polynomial_schedule
from flaxtrain.schedules.restarts import cosine_restarts_schedule, sgdr_schedule
from flaxtrain.schedules.warmup import (
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from flaxtrain.schedules.wsd import cooldown_schedule, wsd_schedule

__all__ = ["FACTORIES", "from_dict"]

FACTORIES: Mapping[str, Callable[..., Schedule]] = MappingProxyType(
    {
        factory.__name__: factory
        for factory in (
            constant_schedule,
            cooldown_schedule,
            cosine_decay_schedule,
            cosine_onecycle_schedule,
            cosine_restarts_schedule,
            exponential_decay,
            inverse_sqrt_schedule,
            join_schedules,
            linear_onecycle_schedule,
            linear_schedule,
            piecewise_constant_schedule,
            piecewise_interpolate_schedule,
            polynomial_schedule,
            sgdr_schedule,
            warmup_constant_schedule,
            warmup_cosine_decay_schedule,
            warmup_exponential_decay_schedule,
            wsd_schedule,
        )
    }
)
"""Every schedule's factory, by name."""


def from_dict(data: Mapping[str, Any]) -> Schedule:
    """Builds a schedule from the data that `Schedule.to_dict` returns.

    Args:
        data: `{"schedule": a factory's name, argument: value, ...}`; arguments with a default
            may be left out, a value may be such a mapping itself, and a table of steps a
            mapping or a list of pairs.

    Raises:
        UnknownNameError: no schedule, or no argument of it, has that name.
        ArgumentError: an argument is missing, or a value is out of range.
        ArgumentTypeError: `data` is not a mapping with a name, or a value has the wrong type.

    Example:
        >>> decay = from_dict(
        ...     {"schedule": "cosine_decay_schedule", "init_value": 1.0, "decay_steps": 10}
        ... )
        >>> round(float(decay(5)), 3), from_dict(decay.to_dict()) == decay
        (0.5, True)
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("schedule"), str):
        raise ArgumentTypeError(
            f"{data!r} is not a schedule written as data",
            where="schedules.from_dict",
            fix='pass a mapping {"schedule": name, argument: value, ...}',
        )
    name = data["schedule"]
    if name not in FACTORIES:
        raise unknown_name("schedule", name, FACTORIES, where="schedules.from_dict")
    parameters = inspect.signature(FACTORIES[name]).parameters
    arguments = {key: _decoded(value) for key, value in data.items() if key != "schedule"}
    for key in arguments:
        if key not in parameters:
            raise unknown_name("argument", key, parameters, where=name)
    missing = [
        key for key, p in parameters.items() if p.default is p.empty and key not in arguments
    ]
    if missing:
        raise ArgumentError(
            f"{', '.join(missing)} missing",
            where=name,
            fix=f"add {missing[0]!r}: {name} needs it",
        )
    return FACTORIES[name](**arguments)


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        decoded = {key: _decoded(item) for key, item in value.items()}
        return from_dict(value) if "schedule" in value else decoded
    return [_decoded(item) for item in value] if isinstance(value, (list, tuple)) else value
