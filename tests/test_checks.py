"""Checks of arguments. Most are tested where they are used, with the arguments they judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.checks import (
    INT32_MAX,
    as_directory,
    check_instance,
    check_integer,
    floating_dtype,
)
from flaxtrain.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float32, np.float64, np.dtype("float16")])
def test_floating_dtypes_are_known_however_they_are_written(dtype: Any) -> None:
    assert floating_dtype("dtype", dtype, allow_complex=False) == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype", [None, "int32", bool, "float31", 3, jnp.ones])
def test_all_else_is_refused(dtype: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"mu_dtype=.* is not a floating dtype"):
        floating_dtype("mu_dtype", dtype, where="f")


def test_complex_dtypes_are_refused_where_they_will_not_do() -> None:
    assert floating_dtype("dtype", "complex64") == jnp.complex64
    with pytest.raises(ArgumentTypeError, match="'complex64' is not a floating dtype"):
        floating_dtype("dtype", "complex64", allow_complex=False)


@pytest.mark.parametrize(("show", "text"), [(True, "n='1' is a str"), (False, "n is a str")])
def test_what_is_no_instance_is_named_by_its_type(show: bool, text: str) -> None:
    check_instance("n", 1, int, where="f", fix="pass 1", show=show)
    with pytest.raises(ArgumentTypeError, match=f"^{text}, not a Path\n"):
        check_instance("n", "1", Path, where="f", fix="pass a path", show=show)
    with pytest.raises(ArgumentTypeError, match="a str, not an ArgumentTypeError"):
        check_instance("n", "1", ArgumentTypeError, where="f", fix="pass an error")


def test_an_integer_has_a_smallest_and_a_largest_value() -> None:
    for value in (1, INT32_MAX, np.int64(INT32_MAX), jnp.int32(3)):
        check_integer("n", value, minimum=1, maximum=INT32_MAX)
    with pytest.raises(ArgumentError, match=r"n=0 is too small\n.*>= 1"):
        check_integer("n", 0, minimum=1, maximum=INT32_MAX)
    with pytest.raises(ArgumentError, match=r"n=2147483648 is too large\n.*<= 2147483647"):
        check_integer("n", np.int64(INT32_MAX + 1), minimum=1, maximum=INT32_MAX)


@pytest.mark.usefixtures("unchecked_types")
def test_a_directory_is_a_path_or_none() -> None:
    assert as_directory("workdir", None, where="f") is None
    assert as_directory("workdir", "a", where="f") == Path("a")
    assert as_directory("workdir", Path("~"), where="f") == Path.home()
    with pytest.raises(ArgumentError, match="workdir is an empty text\n  where: f"):
        as_directory("workdir", "", where="f")
    with pytest.raises(ArgumentTypeError, match="workdir=3 is an int, not a path\n  where: f"):
        as_directory("workdir", 3, where="f")  # type: ignore[arg-type]
