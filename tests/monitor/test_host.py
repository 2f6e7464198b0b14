from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.monitor.host import as_floats, as_numpy, check_step


def test_every_kind_of_scalar_becomes_a_python_float_in_order():
    scalars = {
        "z": jnp.float32(0.5),
        "y": np.float64(2),
        "x": 3,
        "w": True,
        "v": jnp.bfloat16(1.5),
        "u": jnp.ones((1, 1)),
    }
    floats = as_floats(scalars)
    assert floats == {"z": 0.5, "y": 2.0, "x": 3.0, "w": 1.0, "v": 1.5, "u": 1.0}
    assert list(floats) == list(scalars) and {type(v) for v in floats.values()} == {float}


def test_nan_and_infinity_pass():
    assert np.isnan(as_floats({"x": jnp.nan})["x"]) and as_floats({"x": np.inf})["x"] == np.inf


@pytest.mark.parametrize("value", [jnp.ones(2), np.zeros(0), 1j, np.array("a")])
def test_anything_else_is_refused_by_its_tag(value):
    with pytest.raises(ArgumentTypeError, match="the scalar 'loss' has shape"):
        as_floats({"loss": value})


def test_arrays_become_numpy_arrays():
    arrays = as_numpy({"a": jnp.ones(2), "b": np.ones(2), "c": 3})
    assert all(type(array) is np.ndarray for array in arrays.values())


@pytest.mark.parametrize(("step", "error"), [(-1, ArgumentError), (1.5, ArgumentTypeError)])
def test_a_step_is_a_natural_number(step, error):
    with pytest.raises(error):
        check_step(step)
    assert type(check_step(np.int32(3))) is int
