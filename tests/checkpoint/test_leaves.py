from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxtrain.checkpoint.leaves import decode, describe, encode, mismatch, place
from flaxtrain.errors import CheckpointError

EVERY_DTYPE = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
]


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", EVERY_DTYPE)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_every_dtype_comes_back_bit_by_bit(name, shape):
    array = np.resize(np.array([1, 0, 1, 1, 0]), shape).astype(dtype_of(name))
    record, stored = encode(array, where="x")
    back = decode(record, stored, where="x")
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert (stored is None) == (0 in shape)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (2,), (0,)])
def test_keys_of_every_kind_and_shape_come_back(impl, shape):
    keys = (
        jax.random.split(jax.random.key(3, impl=impl), shape)
        if shape
        else jax.random.key(3, impl=impl)
    )
    record, stored = encode(keys, where="rng")
    back = decode(record, stored, where="rng")
    assert (back.dtype, back.shape) == (keys.dtype, keys.shape)
    assert np.array_equal(jax.random.key_data(back), jax.random.key_data(keys))


@pytest.mark.parametrize(
    "number", [True, False, 0, -(10**30), 0.1, float("inf"), -0.0, 1e-320, 2 - 3j]
)
def test_python_numbers_come_back_exactly(number):
    record, stored = encode(number, where="n")
    back = decode(record, stored, where="n")
    assert stored is None and type(back) is type(number) and repr(back) == repr(number)


def test_nan_stays_nan():
    assert np.isnan(decode(*encode(float("nan"), where="n"), where="n"))


def test_big_endian_and_strided_arrays_come_back_by_value():
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    back = decode(*encode(array, where="x"), where="x")
    assert np.array_equal(back, array) and back.dtype == np.int32


def donated():
    array = jnp.ones(3)
    array.delete()
    return array


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda: "text", "can't hold a str"),
        (lambda: print, "can't hold a builtin_function"),
        (lambda: np.array(["a"]), "can't hold dtype str"),
        (lambda: np.array([object()]), "can't hold dtype object"),
        (lambda: np.zeros(2, "datetime64[s]"), "can't hold dtype datetime64"),
        (lambda: np.zeros(2, np.longdouble), "can't hold dtype (longdouble|float128)"),
        (lambda: np.zeros(2, [("a", "i4")]), "can't hold dtype void"),
        (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "a shape instead of an array"),
        (donated, "has been donated"),
    ],
)
def test_what_a_checkpoint_cant_hold_is_refused_with_its_name(leaf, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        encode(leaf(), where="opt_state/x")
    assert caught.value.where == "opt_state/x" and caught.value.fix


def test_saving_inside_jit_is_refused():
    with pytest.raises(CheckpointError, match="holds a tracer"):
        jax.jit(lambda x: encode(x, where="x"))(1.0)


def test_changed_bytes_are_found():
    record, stored = encode(np.zeros(4, np.float32), where="x")
    stored = stored.copy()
    stored.view(np.uint8)[7] ^= 1
    with pytest.raises(CheckpointError, match="not those that were saved"):
        decode(record, stored, where="x")


class TestMismatch:
    """A table: what is stored, what the state has, and the verdict."""

    @pytest.mark.parametrize(
        ("stored", "like", "verdict"),
        [
            (np.zeros(3, np.float32), np.zeros(3, np.float32), None),
            (np.zeros(3, np.float32), jnp.zeros(3), None),
            (np.zeros(3, np.float32), jax.ShapeDtypeStruct((3,), jnp.float32), None),
            (np.zeros(3, np.float32), jnp.zeros((3, 1)), "shape"),
            (np.zeros(3, np.float32), jnp.zeros(3, jnp.bfloat16), "dtype"),
            (np.zeros(3, np.float32), jnp.zeros(3, jnp.int32), "dtype"),
            (np.zeros(3, np.float32), 0.0, "dtype"),
            (jax.random.key(0), jax.random.key(9), None),
            (jax.random.key(0), jax.random.key(0, impl="rbg"), "dtype"),
            (jax.random.key(0), jax.random.PRNGKey(0), "dtype"),
            (7, 0, None),
            (7, 0.0, "dtype"),
            (True, 0, "dtype"),
            (7, jnp.int32(0), None),
            (2**31, jnp.int32(0), "dtype"),
            (300, np.uint8(0), "dtype"),
            (0.5, jnp.float32(0), None),
            (0.1, jnp.float32(0), "dtype"),
            (float("nan"), jnp.float32(0), None),
            (True, jnp.int32(0), "dtype"),
            (np.int32(7), 0, None),
            (np.float32(7), 0, "dtype"),
            (jnp.bfloat16(7), 0.0, None),
            (np.zeros(1, np.int32), 0, "dtype"),
        ],
    )
    def test_it_fits_only_what_can_be_held_exactly(self, stored, like, verdict):
        record, array = encode(stored, where="x")
        found = mismatch(record, like, where="x")
        assert (found.split()[0] if found else None) == verdict
        if verdict is None:
            back = place(decode(record, array, where="x"), like, where="x")
            assert describe(back, where="x").dtype == describe(like, where="x").dtype
            if record.kind != "key":
                assert np.array_equal(np.asarray(back), np.asarray(stored), equal_nan=True)

    def test_the_text_says_both(self):
        record, _ = encode(np.zeros((2, 3), np.float32), where="w")
        assert mismatch(record, jnp.zeros(3), where="w") == (
            "shape float32[2,3] in the checkpoint, float32[3] in the state"
        )


class TestPlace:
    def test_an_uncommitted_array_stays_uncommitted(self):
        back = place(np.ones(3, np.float32), jnp.zeros(3), where="x")
        assert isinstance(back, jax.Array) and not back.committed

    def test_an_array_goes_where_the_other_is(self):
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.device_put(jnp.zeros(3), sharding)
        back = place(np.ones(3, np.float32), like, where="x")
        assert back.committed and back.sharding == like.sharding

    def test_a_weakly_typed_scalar_stays_weakly_typed(self):
        # A strong float32 would turn bfloat16 arithmetic into float32 after a resume.
        back = place(np.float32(2), jnp.asarray(1.0), where="x")
        assert back.weak_type and (back * jnp.ones((), jnp.bfloat16)).dtype == jnp.bfloat16

    @pytest.mark.parametrize("like", [np.zeros(2), np.float64(0), 0.0])
    def test_host_values_stay_on_the_host(self, like):
        shape = np.shape(like)
        back = place(np.full(shape, 3.0), like, where="x")
        assert type(back) is type(like) and np.all(back == 3.0)

    def test_float64_without_x64_is_an_error_not_a_cast(self):
        like = jax.ShapeDtypeStruct((2,), np.float64)
        with pytest.raises(CheckpointError, match="can't hold float64") as caught:
            place(np.ones(2), like, where="params/w")
        assert "jax_enable_x64" in caught.value.fix and caught.value.where == "params/w"
