"""Adapters as subtrees, and what does not fit together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.params.low_rank import add_products, join_adapters, split_adapters

PAIR = {"lora_a": jnp.ones((3, 1, 2)), "lora_b": jnp.ones((1, 4, 2))}
BASE = {"fc": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}, "head": jnp.ones(2)}


def add(base: Any, adapters: Any, rank: int = 2) -> Any:
    return add_products(base, adapters, 0.5, rank)


def test_only_the_kernel_with_an_adapter_becomes_another_array() -> None:
    result = add(BASE, {"fc": {"kernel": PAIR}})
    assert (result["fc"]["kernel"] == 1.0).all()
    assert result["fc"]["bias"] is BASE["fc"]["bias"]
    assert result["head"] is BASE["head"]
    assert (BASE["fc"]["kernel"] == 0.0).all()


def test_axes_of_length_1_are_told_apart_where_it_matters() -> None:
    a, b = jnp.arange(2.0).reshape(1, 1, 2), jnp.arange(10.0).reshape(1, 5, 2)
    result = add(jnp.zeros((1, 5)), {"lora_a": a, "lora_b": b})
    assert (result == 0.5 * jnp.arange(1.0, 10.0, 2.0)[None]).all()


def test_a_module_may_have_the_name_of_an_adapter() -> None:
    base = {"lora_a": {"kernel": jnp.zeros((3, 4))}, "lora_b": {"kernel": jnp.zeros((3, 4))}}
    result = add(base, {"lora_a": {"kernel": PAIR}, "lora_b": {"kernel": PAIR}})
    assert (result["lora_b"]["kernel"] == 1.0).all()


def test_products_are_added_in_float32_and_rounded_once() -> None:
    """256 + 1 is 256 in bfloat16; the sum of the three products, 3 x 1, is rounded once."""
    kernel = jnp.full((3, 4), 256.0, jnp.bfloat16)
    pair = {"lora_a": jnp.ones((3, 1, 3)), "lora_b": jnp.ones((1, 4, 3), jnp.bfloat16)}
    result = add_products(kernel, pair, 1.0, 3)
    assert result.dtype == jnp.bfloat16
    assert (result == jnp.asarray(259.0, jnp.bfloat16)).all()


def test_splitting_and_joining_are_inverse_and_copy_nothing() -> None:
    params = join_adapters(BASE, {"fc": {"kernel": PAIR}})
    base, adapters = split_adapters(params)
    assert base == BASE and adapters == {"fc": {"kernel": PAIR}}
    assert base["fc"] is BASE["fc"]


@pytest.mark.parametrize(
    ("base", "adapters", "rank", "message"),
    [
        (BASE, {"fc": {"kernal": PAIR}}, 2, "adapters for 'fc/kernal', not in the params"),
        (BASE, {"head": {"kernel": PAIR}}, 2, "adapters for 'head/kernel'"),
        (BASE, {"fc": PAIR}, 2, "'fc' is no kernel with a pair"),
        (BASE, {"fc": {"kernel": jnp.ones(3)}}, 2, "'fc/kernel' is no kernel with a pair"),
        (BASE, {"fc": {"kernel": PAIR}}, 1, "the last axis is not rank 1"),
        (BASE, {"fc": {"bias": PAIR}}, 2, r"'fc/bias' has shape \(4,\)"),
        (
            {"fc": {"kernel": jnp.zeros((4, 3))}},
            {"fc": {"kernel": PAIR}},
            2,
            r"'fc/kernel' has shape \(4, 3\), its adapter has \(3, 1, 2\) and \(1, 4, 2\)",
        ),
        (
            BASE,
            {"fc": {"kernel": PAIR | {"lora_b": jnp.ones((2, 4, 2))}}},
            2,
            r"its adapter has \(3, 1, 2\) and \(2, 4, 2\)",
        ),
    ],
)
def test_adapters_of_another_model_are_refused_with_the_path(
    base: Any, adapters: Any, rank: int, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        add(base, adapters, rank)


@pytest.mark.parametrize("params", [BASE, {"lora": 3}, {}, 3])
def test_params_without_adapters_are_not_split(params: Any) -> None:
    with pytest.raises(ParameterError, match="no adapters"):
        split_adapters(params)


def test_what_can_not_be_joined_is_refused() -> None:
    with pytest.raises(ParameterError, match="already"):
        join_adapters({"lora": {}}, {})
    with pytest.raises(ArgumentTypeError, match="adapters is an int, not nested dicts"):
        join_adapters({}, 3)
    with pytest.raises(ArgumentTypeError, match="base is an int"):
        join_adapters(3, {})


def test_products_are_asked_for_in_full_precision() -> None:
    """On a CPU they are anyway, so the program is looked at."""
    program = str(jax.make_jaxpr(lambda base: add(base, {"fc": {"kernel": PAIR}}))(BASE))
    assert "Precision.HIGHEST" in program
