"""Policies and precisions as values: reading, printing, comparing, refusing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError, FlaxtrainError, UnknownNameError
from flaxtrain.precision import Policy, Precision
from flaxtrain.precision.policy import short_name


@pytest.mark.parametrize(
    ("text", "dtypes"),
    [
        ("f32", ("float32", "float32", "float32")),
        ("float32", ("float32", "float32", "float32")),
        ("bf16", ("float32", "bfloat16", "float32")),
        ("bfloat16", ("float32", "bfloat16", "float32")),
        ("f16", ("float32", "float16", "float32")),
        (" f64 ", ("float64", "float64", "float64")),
        ("p=bf16,c=bf16,o=f32", ("bfloat16", "bfloat16", "float32")),
        ("o=f32, c=float16 ,p=f64", ("float64", "float16", "float32")),
    ],
)
def test_a_policy_is_read_by_name_or_by_letters_in_any_order(text: str, dtypes: Any) -> None:
    policy = Policy.of(text)
    assert tuple(dtype.name for dtype in policy.dtypes) == dtypes
    # Its own text is read back as the same policy.
    assert Policy.of(str(policy)) == policy and str(policy) in repr(policy)


def test_what_a_policy_leaves_out_is_that_of_the_one_below() -> None:
    part = Policy.of("c=f32")
    assert (part.param, part.output) == (None, None) and str(part) == "c=f32"
    assert part.over(Policy.of("p=bf16,c=bf16,o=f32")) == Policy.of("p=bf16,c=f32,o=f32")
    assert Precision("c=bf16").main == Policy.of("bf16")


def test_dtypes_are_given_by_any_of_their_names() -> None:
    by_name = Policy("bfloat16", "bf16", "float32")
    assert by_name == Policy(jnp.bfloat16, jnp.dtype(jnp.bfloat16), np.float32)
    assert short_name(np.float16) == "f16" and short_name(np.int8) == "int8"


@pytest.mark.parametrize(
    ("text", "kind", "found", "fix"),
    [
        ("bf61", UnknownNameError, "unknown precision 'bf61'", "did you mean 'bf16'?"),
        ("", UnknownNameError, "unknown precision ''", "Known: bf16"),
        ("c=fp16", UnknownNameError, "unknown precision 'fp16'", "did you mean 'f16'?"),
        ("c=", UnknownNameError, "unknown precision ''", "Known: bf16"),
        ("q=f32", UnknownNameError, "unknown letter 'q'", "Known: c, o, p"),
        ("c=f32,c=bf16", ArgumentError, "'c' is given twice", "pass"),
        ("c=f32,", ArgumentError, "'' in 'c=f32,' has no '='", "pass"),
        ("f32,bf16", ArgumentError, "'f32' in 'f32,bf16' has no '='", "pass"),
        (jnp.bfloat16, ArgumentTypeError, "not a policy", "pass"),
        (None, ArgumentTypeError, "None is a NoneType, not a policy", "pass"),
    ],
)
def test_wrong_policies_are_refused_with_the_nearest_name(
    text: Any, kind: type[FlaxtrainError], found: str, fix: str, unchecked_types: None
) -> None:
    for read in (Policy.of, Precision, lambda text: Precision("f32", {"#bias": text})):
        with pytest.raises(kind) as caught:
            read(text)
        assert found in caught.value.found and fix in str(caught.value.fix)
        assert caught.value.where


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (jnp.int32, ArgumentTypeError),
        (jnp.complex64, ArgumentTypeError),
        (3, ArgumentTypeError),
        (jnp.float8_e5m2, UnknownNameError),
        ("int8", UnknownNameError),
    ],
)
def test_dtypes_that_no_model_is_trained_in_are_refused(
    dtype: Any, kind: type[FlaxtrainError], unchecked_types: None
) -> None:
    with pytest.raises(kind):
        Policy(compute=dtype)


def test_a_precision_is_a_value() -> None:
    first = Precision("bf16", {"@LayerNorm": "c=f32", nn.Embed: "p=bf16"}, update="master")
    second = Precision(
        "c=bf16", {"@LayerNorm": Policy.of("c=f32"), nn.Embed: "p=bf16"}, "master"
    )
    assert first == second and hash(first) == hash(second)
    assert first != replace(first, update="kahan") and replace(first, update="master") == first
    assert repr(Precision("bf16", {"#bias": "c=f32"})) == (
        "Precision('p=f32,c=bf16,o=f32', overrides={'#bias': 'c=f32'})"
    )
    assert repr(Precision("f16", update="kahan")) == (
        "Precision('p=f32,c=f16,o=f32', update='kahan')"
    )
    # The order of overrides matters: the first that selects a parameter counts.
    assert Precision("f32", {"a": "f16", "b": "f32"}) != Precision(
        "f32", {"b": "f32", "a": "f16"}
    )


def test_the_default_changes_nothing_and_float16_asks_for_a_loss_scale() -> None:
    assert Precision().is_full and Precision("p=f32").is_full
    assert not Precision("bf16").is_full and not Precision("f32", {"a": "c=f32"}).is_full
    assert [
        Precision(*arguments).needs_loss_scale
        for arguments in [("f32",), ("bf16",), ("f16",), ("p=f16",), ("o=f16",)]
    ] == [False, False, True, True, True]
    assert Precision("bf16", {"a": "c=f16"}).needs_loss_scale


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"overrides": "c=f32"}, ArgumentTypeError, "is no dict"),
        ({"overrides": ["@LayerNorm"]}, ArgumentTypeError, "is no dict"),
        ({"overrides": 3}, ArgumentTypeError, "is no dict"),
        ({"update": "stochastik"}, UnknownNameError, "unknown update 'stochastik'"),
        ({"update": None}, ArgumentTypeError, "update=None"),
    ],
)
def test_wrong_arguments_of_a_precision_are_refused(
    arguments: dict[str, Any], kind: type[FlaxtrainError], text: str, unchecked_types: None
) -> None:
    with pytest.raises(kind, match=text):
        Precision(**arguments)
