"""Every argument of every public factory refuses what can't be meant, whoever wrote it.

The arguments are found by their defaults; what a factory can't do without stands in a table.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from flaxtrain import optim, schedules
from flaxtrain.errors import FlaxtrainError

REQUIRED: dict[str, Any] = {
    "learning_rate": 0.1,
    "decay": 0.9,
    "step_size": 0.1,
    "step_size_fn": lambda count: 0.1,
    "eta": 0.1,
    "gamma": 0.5,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "threshold": 1.0,
    "clipping": 0.1,
    "inner": optim.identity(),
    "opt": optim.identity(),
    "optimizer": optim.identity(),
    "fast_optimizer": optim.identity(),
    "mask": {"w": True},
    "freeze_mask": {"w": True},
    "transforms": {"a": optim.identity()},
    "param_labels": {"w": "a"},
    "multipliers": {"w": 1.0},
    "should_transform_fn": lambda **kwargs: True,
    "max_consecutive_errors": 2,
    "every_k_schedule": 2,
    "sync_period": 2,
    "slow_step_size": 0.5,
    "measure_name": "norm",
    "measure": abs,
    "measures": {"size": abs},
    "init_value": 1.0,
    "end_value": 0.1,
    "peak_value": 1.0,
    "value": 1.0,
    "power": 1.0,
    "transition_steps": 10,
    "decay_steps": 20,
    "warmup_steps": 5,
    "decay_rate": 0.9,
    "interpolate_type": "linear",
    "boundaries_and_scales": {5: 0.5},
    "stable_steps": 10,
    "schedules": [lambda count: 1.0, lambda count: 0.5],
    "boundaries": [5],
    "cosine_kwargs": [
        {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20}
    ],
    "inner_factory": optim.sgd,
    "function": lambda updates, params: updates,
    "f": lambda update, param: update,
    "tx": optim.identity(),
}
"""A valid value for every argument without default."""

SPECIAL: dict[str, dict[str, Any]] = {
    "scale": {"step_size": 0.5},
    "adabelief": {"weight_decay": 0.1},
    "adafactor": {"weight_decay_rate": 0.1},
}
"""What else a factory needs: one of two arguments that both have defaults, or a decay without
which the mask is not looked at."""

UNCHECKED = {
    **dict.fromkeys(
        ("identity", "keep_params_nonnegative", "scale_by_sign", "set_to_zero", "zero_nans"),
        "has no arguments",
    ),
    "inject_stateful_hyperparams": "warns, and is inject_hyperparams then",
    "from_dict": "takes what `to_dict` made: tests/schedules/test_base.py",
    "named": "decorates factories: tests/optim/test_transform.py",
    "per_leaf": "takes a rule and its state: tests/optim/test_per_leaf.py",
    "stateless": "takes any function, which is called by `update` first",
    "stateless_with_tree_map": "takes any function, which is called by `update` first",
}
"""Public factories without a row below, and why."""


def factories() -> dict[str, Callable[..., Any]]:
    """Returns every public function whose annotation says that it makes a transformation, a
    factory of such, or a schedule."""
    public = {name: getattr(room, name) for room in (optim, schedules) for name in room.__all__}
    return {
        name: thing
        for name, thing in public.items()
        if inspect.isfunction(thing)
        and re.search(r"GradientTransformation\b|Schedule$", thing.__annotations__["return"])
    }


def valid(name: str) -> dict[str, Any]:
    """Returns the least arguments that a factory accepts."""
    needed = [
        p.name
        for p in inspect.signature(FACTORIES[name]).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    ]
    return {key: REQUIRED[key] for key in needed} | SPECIAL.get(name, {})


A_MASK = ("kernels", "a mask holds 'kernels'")

WRONG: dict[str, tuple[Any, str]] = {
    "mask": A_MASK,
    "freeze_mask": A_MASK,
    "weight_decay_mask": A_MASK,
    "trust_ratio_mask": A_MASK,
    "transforms": ({"a": 0.1}, "0.1 is not a gradient transformation"),
    "measures": ({"size": 0.1}, "measure=0.1"),
    "schedules": ([0.1, 0.2], "schedules"),
    "boundaries": ([-5], "boundaries"),
    "cosine_kwargs": ([{"peak": 1.0}], "'peak'"),
}
"""What can't be meant where it is no number, and what the error says."""


def wrong_values(name: str, parameter: inspect.Parameter) -> list[tuple[Any, str]]:
    """Returns values that can't be meant, and what the error says."""
    sample, argument = valid(name).get(parameter.name, parameter.default), parameter.name
    values: list[Any] = []
    if argument in WRONG:
        return [WRONG[argument]]
    if isinstance(sample, optim.GradientTransformation):
        return [(0.1, "0.1 is not a gradient transformation")]
    if argument.endswith("dtype"):
        values = ["int32", "float23", 3.5]
    elif argument == "mask_compatible_extra_args":
        values = []  # only its truth is asked for
    elif isinstance(sample, bool):
        values = ["yes", 0.5]
    elif isinstance(sample, (int, float)):
        values = [math.nan, "0.1", [0.1, 0.2]]
    elif argument in ("learning_rate", "weight_decay"):
        values = [math.nan, "0.1", -1.0]
    elif callable(sample):
        values = [0.1]
    return [(value, argument) for value in values]


FACTORIES = factories()

ROWS = [
    pytest.param(
        name, parameter.name, value, text, id=f"{name}({parameter.name}={str(value)[:9]})"
    )
    for name, factory in FACTORIES.items()
    if name not in UNCHECKED
    for parameter in inspect.signature(factory).parameters.values()
    for value, text in wrong_values(name, parameter)
]


@pytest.mark.parametrize(("name", "argument", "value", "text"), ROWS)
def test_what_can_not_be_meant_is_refused_at_once(
    name: str, argument: str, value: Any, text: str, unchecked_types: None
) -> None:
    with pytest.raises(FlaxtrainError) as caught:
        FACTORIES[name](**{**valid(name), argument: value})
    assert text in str(caught.value) and caught.value.fix


def test_every_public_factory_has_a_row_or_a_reason() -> None:
    tried = {row.values[0] for row in ROWS}
    assert set(FACTORIES) - tried == set(UNCHECKED)


def test_the_arguments_of_the_table_are_valid() -> None:
    kinds = (optim.GradientTransformation, schedules.Schedule)
    for name in FACTORIES.keys() - UNCHECKED.keys():
        made = FACTORIES[name](**valid(name))
        assert isinstance(made, kinds) or callable(made), name
