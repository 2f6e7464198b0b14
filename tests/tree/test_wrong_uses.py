"""Wrong uses of the tree utilities, and what optax's can't do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import pytest

from flaxtrain import tree
from flaxtrain.errors import ArgumentError, FlaxtrainError, ParameterError

WRONG: list[tuple[Callable[[], Any], type[FlaxtrainError], str]] = [
    (lambda: tree.norm({"a": 1.0}, ord=3), ArgumentError, "ord=3 is not a norm of trees"),
    (lambda: tree.norm({"a": 1.0}, "nuc"), ArgumentError, "pass None, 1, 2 or inf"),
    (
        lambda: tree.vdot({"a": jnp.ones(2)}, {"a": jnp.ones(3)}),
        ParameterError,
        r"leaves of shapes \(2,\) and \(3,\) have no inner product",
    ),
    (
        lambda: tree.dtype({"a": jnp.ones(2), "b": {"c": jnp.ones(2, jnp.int32)}}),
        ParameterError,
        "leaves have several dtypes: a: float32, b/c: int32",
    ),
    (
        lambda: tree.dtype([jnp.ones(2, jnp.float16), jnp.ones(2, jnp.bfloat16)], "highest"),
        ParameterError,
        "neither of float16 and bfloat16 promotes to the other",
    ),
    (lambda: tree.dtype([], "widest"), ArgumentError, "pass None or one of 'promote'"),
]


@pytest.mark.parametrize(("make", "error", "text"), WRONG)
def test_a_wrong_use_raises(
    make: Callable[[], Any], error: type[FlaxtrainError], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


def test_nothing_is_added_where_the_second_tree_has_none() -> None:
    x, y = {"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": None, "b": jnp.ones(1)}
    with pytest.raises(TypeError):
        optax.tree.add_scale(x, 2.0, y)
    total = tree.add_scale(x, 2.0, y)
    assert total["a"] is x["a"] and float(total["b"][0]) == 3.0


def test_python_numbers_can_be_cast() -> None:
    with pytest.raises(AttributeError):
        optax.tree.cast({"a": 1.0}, jnp.bfloat16)
    assert tree.cast({"a": 1.0}, jnp.bfloat16)["a"].dtype == jnp.bfloat16
