"""Specs as JSON: an exact round trip, and named errors for what is not data or not known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtrain import optim
from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.optim import NAMED
from flaxtrain.schedules import (
    FACTORIES,
    constant_schedule,
    cosine_decay_schedule,
    join_schedules,
    linear_schedule,
    warmup_cosine_decay_schedule,
)
from flaxtrain.spec import OptSpec
from tests.schedule_cases import CASES

SPECS = [
    OptSpec("sgd", 0.1),
    OptSpec("sgd", 1, momentum=0.9, nesterov=True),
    OptSpec("sgd", 0.0, momentum=0),
    OptSpec("adam", 1e-3, b1=0.1 + 0.2, eps=5e-324, mu_dtype="bfloat16"),
    OptSpec("adamw", np.float32(0.1), weight_decay=1 / 3, clip_norm=1.0, nonfinite="skip"),
    OptSpec("adamw", 0.1, decay={"encoder": {"kernel": True, "bias": False}, "head": True}),
    OptSpec("adamw", warmup_cosine_decay_schedule(0.0, 1e-3, "5%", "100%")),
    OptSpec(
        "adamw", join_schedules([constant_schedule(0.1), linear_schedule(1, 0, "2ep")], [5])
    ),
    OptSpec(optim.adam(0.1, b1=0.8, mu_dtype=jnp.bfloat16), clip_norm=0.5),
    OptSpec(optim.sgd(cosine_decay_schedule(0.1, 100), momentum=0.9)),
    *(OptSpec("sgd", case.ours) for case in CASES if min(v for _, v in case.points) >= 0),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_json_round_trip_is_exact(spec: OptSpec) -> None:
    text = spec.to_json()
    back = OptSpec.from_json(text)
    assert back == spec
    assert hash(back) == hash(spec)
    assert back.to_json() == text
    assert repr(back) == repr(spec)
    assert OptSpec.from_dict(spec.to_dict()) == spec
    assert OptSpec.from_json(spec.to_json(indent=2)) == spec


def test_the_form_of_the_data() -> None:
    spec = OptSpec("adamw", linear_schedule(0.1, 0.0, "100%"), clip_norm=1.0, b1=0.8)
    assert spec.to_dict() == {
        "version": 1,
        "optimizer": "adamw",
        "learning_rate": {
            "schedule": "polynomial_schedule",
            "init_value": 0.1,
            "end_value": 0.0,
            "power": 1,
            "transition_steps": "100%",
            "transition_begin": 0,
        },
        "weight_decay": None,
        "decay": "kernels",
        "decay_to": "zero",
        "clip_norm": 1.0,
        "clip": [],
        "nonfinite": "raise",
        "max_skips": 10,
        "spikes": None,
        "accumulate": 1,
        "ema": None,
        "layer_decay": None,
        "groups": [],
        "freeze": [],
        "hyperparameters": {"b1": 0.8},
    }


def test_fields_with_a_default_may_be_left_out() -> None:
    assert OptSpec.from_dict({"optimizer": "sgd", "learning_rate": 0.1}) == OptSpec("sgd", 0.1)


def _rate(count: Any) -> float:
    return 0.1


@pytest.mark.parametrize(
    ("spec", "found", "where"),
    [
        (
            OptSpec("sgd", _rate),
            "the function _rate can't be written as data",
            "OptSpec(learning_rate=...)",
        ),
        (
            OptSpec("sgd", join_schedules([_rate, constant_schedule(0.1)], [5])),
            "the function _rate can't be written as data",
            "join_schedules(schedules=...)",
        ),
        (
            OptSpec("adamw", 0.1, decay=lambda fact: True),
            "the function <lambda> can't be written as data",
            "OptSpec(decay=...)",
        ),
        (
            OptSpec(optim.chain(optim.adam(0.1))),
            "the optimizer object chain can't be written as data",
            "OptSpec(optimizer)",
        ),
        (
            OptSpec(optim.adam(_rate)),
            "the function _rate can't be written as data",
            "adam(learning_rate=...)",
        ),
        (
            OptSpec(optim.sgd(jnp.float32(0.5))),
            "Array(0.5, dtype=float32) can't be written as data",
            "sgd(learning_rate=...)",
        ),
    ],
)
def test_what_is_not_data_is_refused_by_name(spec: OptSpec, found: str, where: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        spec.to_json()
    assert caught.value.found == found
    assert caught.value.where is not None
    assert caught.value.where.endswith(where)
    assert caught.value.fix


def test_a_foreign_object_is_refused_by_name() -> None:
    with pytest.raises(ArgumentTypeError, match="object GradientTransformationExtraArgs can't"):
        OptSpec(optax.adam(0.1)).to_json()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("read", "error", "text"),
    [
        (
            lambda: OptSpec.from_dict({"optimizer": "sgd", "learning_rat": 0.1}),
            UnknownNameError,
            "unknown field 'learning_rat'\n"
            "  where: OptSpec.from_dict\n"
            "  fix:   did you mean 'learning_rate'? Known: accumulate, clip, clip_norm, "
            "decay, decay_to, ema, freeze, groups, hyperparameters, layer_decay, "
            "learning_rate, max_skips, nonfinite, optimizer, spikes, weight_decay",
        ),
        (
            lambda: OptSpec.from_dict({"learning_rate": 0.1}),
            ArgumentError,
            "the spec names no optimizer\n"
            "  where: OptSpec.from_dict\n"
            "  fix:   add 'optimizer': 'adam', or another name",
        ),
        (
            lambda: OptSpec.from_dict({"version": 7, "optimizer": "sgd"}),
            ArgumentError,
            "the spec is of version 7, this flaxtrain reads version 1\n"
            "  where: OptSpec.from_dict\n"
            "  fix:   read it with the flaxtrain that wrote it, or write it anew",
        ),
        (
            lambda: OptSpec.from_dict({"optimizer": {"object": "adm"}}),
            UnknownNameError,
            "unknown optimizer 'adm'\n"
            "  where: OptSpec.from_dict: optimizer\n"
            f"  fix:   did you mean 'adam'? Known: {', '.join(sorted(NAMED))}",
        ),
        (
            lambda: OptSpec.from_dict(
                {"optimizer": "sgd", "learning_rate": {"schedule": "cosine_schedule"}}
            ),
            UnknownNameError,
            "unknown schedule 'cosine_schedule'\n"
            "  where: schedules.from_dict\n"
            "  fix:   did you mean 'cosine_decay_schedule'? Known: "
            + ", ".join(sorted(FACTORIES)),
        ),
        (
            lambda: OptSpec.from_dict(["sgd"]),  # type: ignore[arg-type]
            ArgumentTypeError,
            "['sgd'] is a list, not a mapping\n"
            "  where: OptSpec.from_dict\n"
            "  fix:   pass what OptSpec.to_dict returned",
        ),
        (
            lambda: OptSpec.from_json("{sgd}"),
            ArgumentError,
            "not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)\n"
            "  where: OptSpec.from_json\n"
            "  fix:   pass what OptSpec.to_json returned",
        ),
        (
            lambda: OptSpec.from_json({}),  # type: ignore[arg-type]
            ArgumentTypeError,
            "{} is a dict, not JSON text\n"
            "  where: OptSpec.from_json\n"
            "  fix:   pass a string; for a mapping use OptSpec.from_dict",
        ),
        (
            lambda: OptSpec.from_json('{"optimizer": "sgd", "learning_rate": NaN}'),
            ArgumentError,
            "learning_rate=nan is out of range\n"
            "  where: OptSpec('sgd')\n"
            "  fix:   pass a finite number in [0, inf)",
        ),
    ],
)
def test_wrong_data_say_what_where_and_what_to_do(
    read: Callable[[], OptSpec], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error) as caught:
        read()
    assert str(caught.value) == text


def test_the_text_is_standard_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for spec in SPECS:
        json.loads(spec.to_json(), parse_constant=refuse)
