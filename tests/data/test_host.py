from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.data.host import Place, as_arrays, canonical, count_rows, to_host
from flaxtrain.errors import BatchError, DataError

HERE = Place("epoch 0, batch 3")


class Tensor:
    """Looks like a tensor of another library: all that is known of it is `__array__`."""

    def __init__(self, values: Any, needs_gradient: bool = False) -> None:
        self.values, self.needs_gradient = np.asarray(values), needs_gradient

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.needs_gradient:
            raise RuntimeError("can't read a tensor that requires grad")
        return self.values


class Pair(NamedTuple):
    inputs: Any
    targets: Any


def test_foreign_tensors_become_arrays_and_lists_of_them_tuples() -> None:
    host = to_host([Tensor(np.ones((2, 3))), Tensor(np.array([1, 2]))], HERE)
    assert isinstance(host, tuple)
    assert [(leaf.dtype.name, leaf.shape) for leaf in host] == [
        ("float32", (2, 3)),
        ("int32", (2,)),
    ]


def test_named_tuples_stay_and_other_mappings_become_dicts() -> None:
    host = to_host(Pair(UserDict(a=np.ones(2)), np.ones(2)), HERE)
    assert isinstance(host, Pair) and type(host.inputs) is dict


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("f8", "float32"),
        ("i8", "int32"),
        ("u8", "uint32"),
        ("c16", "complex64"),
        (">f4", "float32"),
    ]
    + [(name, np.dtype(name).name) for name in ("f2", "f4", "i1", "u1", "i4", "?", "c8")],
)
def test_dtypes_become_the_ones_of_jax(given: str, wanted: str) -> None:
    array = np.ones(3, given)
    found = canonical(array, "x", HERE)
    assert (
        found.dtype.name
        == wanted
        == jnp.asarray(array.astype(array.dtype.newbyteorder("="))).dtype.name
    )
    assert found.dtype.isnative and (found == array).all()


def test_right_dtypes_are_not_copied_and_x64_keeps_64_bits() -> None:
    x = np.ones(3, np.float32)
    assert canonical(x, "x", HERE) is x
    assert canonical(np.ones(3, jnp.bfloat16), "x", HERE).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert canonical(np.ones(3), "x", HERE).dtype == np.float64


@pytest.mark.parametrize(
    "array",
    [
        np.array([2**31]),
        np.array([-(2**31) - 1]),
        np.array([2**32], np.uint64),
        np.array([1e300]),
    ],
)
def test_values_that_do_not_fit_are_refused_not_wrapped(array: np.ndarray) -> None:
    with pytest.raises(BatchError, match="do not fit into"):
        canonical(array, "ids", HERE)
    canonical(array[:0], "ids", HERE)  # an empty array has no value that could be too large


def test_infinity_and_nan_pass() -> None:
    assert np.isinf(canonical(np.array([np.inf, np.nan]), "x", HERE)[0])


WRONG = [
    ({"label": [1, 2, 3]}, "label is a list of int, not an array"),
    ({"text": ["a", "b"]}, "text is a list of str, not an array"),
    ({"text": "a"}, "text is a str, not an array"),
    ({"x": 3}, "x is an int, not an array"),
    ((np.ones(2), None), "1 is a NoneType, not an array"),
    ({"x": np.float32(3)}, r"x is a single number of shape \(\)"),
    ({"a": {"b": np.array(["u", "v"])}}, "a/b has dtype <U1"),
    ({"x": np.array([{}, {}])}, "x has dtype object"),
    ({"x": np.array(["2020-01-01"], "M8[D]")}, r"x has dtype datetime64\[D\]"),
    ({"x": np.zeros(2, [("a", "f4")])}, "x has dtype "),
    ({"x": np.ma.masked_array([1.0, 2.0], [True, False])}, "x is a MaskedArray, not an array"),
    (
        {"x": Tensor([1.0], needs_gradient=True)},
        "x is a Tensor that numpy can't read: can't read",
    ),
    ({0: np.ones(2)}, "the batch has the key 0, not a string"),
    (7, "the batch is an int, not an array"),
]


@pytest.mark.parametrize(("batch", "found"), WRONG)
def test_what_is_no_batch_is_refused_by_name_and_place(batch: Any, found: str) -> None:
    with pytest.raises(BatchError, match=found) as caught:
        to_host(batch, HERE)
    assert caught.value.where == "epoch 0, batch 3" and caught.value.fix


def test_the_place_decides_the_class_of_error() -> None:
    with pytest.raises(DataError) as caught:
        as_arrays({"x": "text"}, Place("batches", DataError))
    assert type(caught.value) is DataError


def test_rows_are_counted_and_have_to_agree() -> None:
    assert count_rows({"x": np.ones((4, 2)), "y": np.ones(4)}, HERE) == 4
    with pytest.raises(BatchError, match="the leading axes disagree: x has 4, y has 3"):
        count_rows({"x": np.ones((4, 2)), "y": np.ones(3)}, HERE)
    with pytest.raises(BatchError, match="there is no array in it"):
        count_rows({"x": ()}, HERE)
