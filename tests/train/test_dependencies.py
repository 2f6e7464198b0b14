"""Which inputs the outputs of a program depend on; everything is read from jaxprs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxtrain.train.dependencies import dependencies

X, Y, Z = 1, 2, 4


def found(function: Callable[..., Any], *, ins: tuple[int, ...] = (X, Y, Z)) -> list[int]:
    """Returns the dependencies of a function of as many scalars as there are sets."""
    return dependencies(jax.make_jaxpr(function)(*map(float, ins)), ins)


def test_an_output_depends_on_what_it_is_computed_from() -> None:
    assert found(lambda x, y, z: (x + y, z * 2, jnp.sin(x * y) - z)) == [X | Y, Z, X | Y | Z]


def test_inputs_that_are_returned_as_they_came_and_constants_are_known() -> None:
    assert found(lambda x, y, z: (z, y, 3.0, jnp.arange(2.0))) == [Z, Y, 0, 0]


def test_what_is_computed_and_not_returned_does_not_count() -> None:
    def function(x: Any, y: Any, z: Any) -> Any:
        _ = jnp.exp(y) + z
        return 2 * x

    assert found(function) == [X]


def test_a_name_that_is_used_again_has_its_new_value() -> None:
    def function(x: Any, y: Any, z: Any) -> Any:
        early, x = x + 1, y * z
        return early, x

    assert found(function) == [X, Y | Z]


def test_what_captured_arrays_bring_in_is_nothing() -> None:
    table = jnp.arange(3.0)
    assert found(lambda x: (table + x, table * 2), ins=(X,)) == [X, 0]


def test_sets_are_joined_whatever_bits_they_have() -> None:
    assert found(lambda x, y: (x * y, x), ins=(0b1010, 0b0110)) == [0b1110, 0b1010]
    assert found(lambda x, y: x * y, ins=(0, 0)) == [0]


def custom_jvp(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a derivative of its own, which isn't asked for."""
    made = jax.custom_jvp(function)
    made.defjvp(lambda primals, tangents: (function(*primals), function(*tangents)))
    return made


def custom_vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a gradient of its own, which isn't asked for."""
    made = jax.custom_vjp(function)
    made.defvjp(lambda *args: (function(*args), ()), lambda kept, grads: (0.0, 0.0, 0.0))
    return made


WRAPPED = {
    "jit": jax.jit,
    "jit in jit": lambda function: jax.jit(lambda *args: jax.jit(function)(*args)),
    "remat": jax.checkpoint,
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_calls_are_looked_into(name: str) -> None:
    def inside(x: Any, y: Any, z: Any) -> Any:
        return jnp.sin(x), y + z

    # In another order than outside, so that inputs have to be followed by their places.
    wrapped = WRAPPED[name](inside)
    assert found(lambda x, y, z: wrapped(z, x, y)) == [Z, X | Y]


LOOPS = {
    "scan": lambda x, y, z: lax.scan(lambda c, _: (c + y, c), x, None, length=2)[0],
    "while": lambda x, y, z: lax.while_loop(lambda c: c < y, lambda c: c + 1, x),
    "cond": lambda x, y, z: lax.cond(y > 0, lambda: x, lambda: x + 1),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_branches_depend_on_all_that_goes_in(name: str) -> None:
    assert found(LOOPS[name]) == [X | Y]


def test_outputs_of_one_loop_are_not_told_apart() -> None:
    def function(x: Any, y: Any, z: Any) -> Any:
        return lax.scan(lambda c, _: ((c[0] + 1, c[1] * 2), None), (x, y), None, length=2)[0]

    assert found(function) == [X | Y, X | Y]


def test_open_and_closed_jaxprs_are_taken() -> None:
    closed = jax.make_jaxpr(lambda x, y: x * y)(1.0, 2.0)
    assert dependencies(closed, [X, Y]) == dependencies(closed.jaxpr, [X, Y]) == [X | Y]


def test_there_is_a_set_for_each_input() -> None:
    closed = jax.make_jaxpr(lambda x, y: x * y)(1.0, 2.0)
    with pytest.raises(ValueError, match="zip"):
        dependencies(closed, [X])
