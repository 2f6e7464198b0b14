from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ParameterError
from flaxtrain.params.fitting import Misfit, fitted, placed, text_of

WRONG_CASTS = [
    # source, dtype here, kind, text
    (np.ones(2), np.float32, True, "dtype", "float64 in the source, float32 here"),
    (np.ones(2, np.float32), jnp.bfloat16, True, "dtype", "float32 in the source, bfloat16"),
    (np.ones(2, np.int32), np.float32, False, "dtype", "int32 in the source, float32 here"),
    (np.ones(2, np.complex64), np.float32, False, "dtype", "complex64 in the source"),
    (np.ones(2, bool), np.int32, False, "dtype", "bool in the source"),
    (np.array([1.0, 1e6, -1e6]), np.float16, False, "cast", "2 of 3 numbers do not fit"),
    (np.array([1, 300]), np.uint8, False, "cast", "1 of 2 numbers do not fit"),
    (np.array([-1, 3], np.int8), np.uint8, False, "cast", "1 of 2 numbers do not fit"),
    (np.array([255], np.uint8), np.int8, False, "cast", "1 of 1 numbers do not fit"),
]


@pytest.mark.parametrize(("value", "dtype", "exact", "kind", "text"), WRONG_CASTS)
def test_an_array_of_another_dtype_is_refused(value, dtype, exact, kind, text) -> None:
    with pytest.raises(Misfit) as caught:
        fitted(value, np.zeros(value.shape, dtype), None, exact=exact)
    assert caught.value.args[0] == kind and text in caught.value.args[1]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1 / 3, np.inf, np.nan]), np.float32),
        (np.array([1 / 3], np.float32), np.float64),
        (np.array([1 / 3], np.float32), jnp.bfloat16),
        (np.array([1 / 3]).astype(jnp.bfloat16), np.float32),
        (np.array([7, 255]), np.uint8),
    ],
)
def test_a_cast_that_is_asked_for_rounds_as_numpy_does(value, dtype) -> None:
    fit = fitted(value, np.zeros(value.shape, dtype), None, exact=False)
    assert fit.changes == {"cast"} and fit.value.dtype == dtype
    assert fit.value.tobytes() == value.astype(dtype).tobytes()


def test_a_function_is_called_also_where_the_shape_fits() -> None:
    fit = fitted(np.eye(2)[::-1] * [1, 2], np.zeros((2, 2)), lambda a, shape: a.T, exact=True)
    assert fit.changes == {"reshaped"} and fit.value.tolist() == [[0, 1], [2, 0]]


def test_a_named_reshaping_leaves_alone_what_fits() -> None:
    value = np.ones((9, 2))
    fit = fitted(value, np.zeros((9, 2)), "interp2d", exact=True)
    assert fit.value is value and fit.changes == frozenset()


def of_another_shape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array[:1]


def of_another_kind(array: np.ndarray, shape: tuple[int, ...]) -> list[float]:
    return [0.0]


def that_fails(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    raise IndexError("no such axis")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (of_another_shape, r"of_another_shape returned float64\[1\] for the shape \[3\]"),
        (of_another_kind, "of_another_kind returned a list, not an array"),
        (that_fails, "that_fails raised IndexError: no such axis"),
        ("interp2d", r"float64\[2\] to shape \[3\] by interp2d: the shapes don't say"),
    ],
)
def test_a_reshaping_that_fails_is_told(how, text: str) -> None:
    with pytest.raises(Misfit, match=text) as caught:
        fitted(np.ones(2), np.zeros(3), how, exact=True)
    assert caught.value.args[0] == "reshape"


def test_the_result_of_a_function_is_not_cast_in_silence() -> None:
    with pytest.raises(Misfit, match="float64 in the source, float32 here"):
        here = np.zeros(3, np.float32)
        fitted(np.ones(3, np.float32), here, lambda a, s: np.zeros(s), exact=True)


def test_what_is_placed_is_a_copy_where_the_old_array_was() -> None:
    device = jax.devices()[-1]
    here = jax.device_put(jnp.zeros(2), device)
    source = jnp.ones(2)
    result = placed(source, here, ("params", "w"))
    assert result.committed and result.devices() == {device}
    jax.jit(lambda x: x + 1, donate_argnums=0)(result)
    assert result.is_deleted() and float(source.sum()) == 2
    assert not placed(source, jnp.zeros(2), ("params", "w")).committed
    array = np.ones(2, np.float32)
    result = placed(array, jnp.zeros(2), ("params", "w"))
    array[0] = 7
    assert float(result.sum()) == 2


def test_a_dtype_that_jax_cannot_hold_now_is_refused() -> None:
    here = jax.ShapeDtypeStruct((2,), np.float64)
    with pytest.raises(ParameterError, match="jax can't hold float64 now"):
        placed(np.ones(2), here, ("params", "w"))
    assert text_of(here) == "float64[2]"
