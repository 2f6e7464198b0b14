"""One leaf of a stored state: what is recorded about it, and how it becomes bytes and back.

Arrays and keys go to the array store as numpy arrays; Python numbers and arrays without
elements are in the record itself. A record has the shape, the dtype and a digest of the bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import is_concrete
from flaxtrain.errors import CheckpointError
from flaxtrain.text import kind_of

__all__ = ["LeafRecord", "decode", "describe", "digest", "encode", "mismatch", "place"]

_NUMBERS: dict[str, type] = {"bool": bool, "int": int, "float": float, "complex": complex}
_PLAIN = frozenset(
    [
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    ]
)
# One-byte extension types. The array store knows some of them, so all go in as raw bytes.
_ONE_BYTE = frozenset(
    [
        *("int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ]
)


@dataclass(frozen=True)
class LeafRecord:
    """What the manifest says about one leaf.

    Attributes:
        kind: `array`, `key` (a typed PRNG key), `number` (a Python number), `none`, or `empty`
            (a container without leaves).
        shape: of the array, or of the array of keys.
        dtype: numpy's name, the kind of key as jax abbreviates it, or the Python type.
        sha256: over the bytes in C order.
        value: the text of a Python number.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    sha256: str = ""
    value: str = ""

    @property
    def is_leaf(self) -> bool:
        """False for `None` and for empty containers."""
        return self.kind in ("array", "key", "number")

    @property
    def is_stored(self) -> bool:
        """Whether the array store holds it; it can't hold arrays without elements."""
        return self.kind in ("array", "key") and 0 not in self.shape

    def __str__(self) -> str:
        if self.kind == "number":
            return f"Python {self.dtype}"
        prefix = "key " if self.kind == "key" else ""
        return f"{prefix}{self.dtype}[{','.join(map(str, self.shape))}]"


def describe(leaf: Any, *, where: str) -> LeafRecord:
    """Returns the record of a leaf, or of a `jax.ShapeDtypeStruct`, without its digest.

    Raises:
        CheckpointError: a checkpoint can't hold such a leaf.

    Example:
        >>> print(describe(np.zeros((2, 3), np.float32), where="params/w"))
        float32[2,3]
    """
    if type(leaf) in _NUMBERS.values():
        return LeafRecord("number", (), type(leaf).__name__, value=repr(leaf))
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise CheckpointError(
            f"a checkpoint can't hold {kind_of(leaf)}",
            where=where,
            fix="keep numbers, arrays and PRNG keys in the state, text in meta, "
            "functions in static fields",
        )
    shape = tuple(leaf.shape)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return LeafRecord("key", shape, leaf.dtype.name.removeprefix("key<").removesuffix(">"))
    name = np.dtype(leaf.dtype).name
    if name not in _PLAIN | _ONE_BYTE:
        raise CheckpointError(
            f"a checkpoint can't hold dtype {name}",
            where=where,
            fix="cast it to a number type of jax",
        )
    return LeafRecord("array", shape, name)


def encode(leaf: Any, *, where: str) -> tuple[LeafRecord, np.ndarray | None]:
    """Returns the record of a leaf and, unless the record is enough, its array for the store.

    Args:
        leaf: an array, a typed PRNG key, a numpy or Python number.
        where: the leaf's name, for messages.

    Raises:
        CheckpointError: the leaf can't be stored: a tracer, donated, spread over several
            processes, or of a type that is no number.

    Example:
        >>> record, array = encode(np.arange(3, dtype=np.int8), where="x")
        >>> record.dtype, record.shape, decode(record, array, where="x")
        ('int8', (3,), array([0, 1, 2], dtype=int8))
    """
    record = describe(leaf, where=where)
    if record.kind == "number":
        return record, None
    array = np.ascontiguousarray(_on_host(leaf, where))
    # ascontiguousarray turns a 0-d array into one of shape (1,).
    array = array if record.kind == "key" else array.reshape(record.shape)
    array = _as_stored(array, record.dtype)
    record = LeafRecord(record.kind, record.shape, record.dtype, digest(array))
    return record, array if record.is_stored else None


def _on_host(leaf: Any, where: str) -> np.ndarray:
    if not is_concrete(leaf):
        raise CheckpointError(
            "the state holds a tracer", where=where, fix="save outside of jit, grad and vmap"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise CheckpointError(
            "the state holds a shape instead of an array",
            where=where,
            fix="save the state itself",
        )
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise CheckpointError(
                "the array has been donated to a compiled function",
                where=where,
                fix="save the state that the last step returned, not the one it was given",
            )
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise CheckpointError(
                "the array is spread over several processes",
                where=where,
                fix="call ft.parallel.gathered in every process, and save what it returns",
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            leaf = leaf.addressable_data(0)
    array = np.asarray(leaf)
    return (
        array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.kind in "iufc"
        else array
    )


def _as_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.view(np.uint8) if dtype in _ONE_BYTE else array


def digest(array: np.ndarray) -> str:
    """Returns the sha256 of an array's bytes in C order, in hexadecimal.

    Example:
        >>> digest(np.zeros(2, np.uint8))[:8]
        '96a296d2'
    """
    # bfloat16 and its kin don't export a buffer, their bytes do.
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(raw.data).hexdigest()


def decode(record: LeafRecord, array: np.ndarray | None, *, where: str) -> Any:
    """Returns a leaf from its record and stored array: a number, a numpy array or a PRNG key.

    Raises:
        CheckpointError: the array is not the one that was saved.
    """
    if record.kind in ("none", "empty"):
        return None if record.kind == "none" else {}
    if record.kind == "number":
        kind = _NUMBERS[record.dtype]
        return record.value == "True" if kind is bool else kind(record.value)
    if array is None:
        width = _key_width(record, where) if record.kind == "key" else ()
        array = np.zeros(record.shape + width, np.uint32 if width else np.dtype(record.dtype))
    elif digest(array) != record.sha256:
        raise CheckpointError(
            "the stored bytes are not those that were saved",
            where=where,
            fix="use another checkpoint",
        )
    if record.kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_implementation(record, where))
    return array.view(np.dtype(record.dtype)) if record.dtype in _ONE_BYTE else array


def _implementation(record: LeafRecord, where: str) -> str:
    """A dtype `key<fry>` is of the implementation that jax calls threefry2x32."""
    known = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}
    if record.dtype not in known:
        raise CheckpointError(
            f"unknown kind of PRNG key {record.dtype!r}",
            where=where,
            fix=f"known: {', '.join(known)}",
        )
    return known[record.dtype]


def _key_width(record: LeafRecord, where: str) -> tuple[int, ...]:
    return jax.random.key_data(jax.random.key(0, impl=_implementation(record, where))).shape


def mismatch(record: LeafRecord, like: Any, *, where: str) -> str | None:
    """Returns how a stored leaf differs from the one it is to replace, or None when it fits.

    A Python number and a 0-d array of its kind stand for one another as long as the value stays
    exactly the same (a counter starts as `0` and comes out of a compiled step as an array).

    Example:
        >>> mismatch(LeafRecord("array", (3,), "float32"), np.zeros(4, np.float32), where="w")
        'shape float32[3] in the checkpoint, float32[4] in the state'
    """
    wanted = describe(like, where=where)
    if (record.kind, record.shape, record.dtype) == (wanted.kind, wanted.shape, wanted.dtype):
        return None
    scalars = record.shape == wanted.shape == ()
    if scalars and _same_kind_of_number(record, wanted) and _fits(record, wanted):
        return None
    word = "shape" if record.kind == wanted.kind and record.shape != wanted.shape else "dtype"
    return f"{word} {record} in the checkpoint, {wanted} in the state"


def _same_kind_of_number(record: LeafRecord, wanted: LeafRecord) -> bool:
    if {record.kind, wanted.kind} != {"array", "number"}:
        return False
    number, array = (record, wanted) if record.kind == "number" else (wanted, record)
    families = {
        "bool": ("bool",),
        "int": ("int", "uint"),
        "float": ("float", "bfloat"),
        "complex": ("complex",),
    }
    return array.dtype.startswith(families[number.dtype]) and array.dtype in _PLAIN


def _fits(record: LeafRecord, wanted: LeafRecord) -> bool:
    """Whether a stored Python number is exactly a value of the wanted dtype."""
    if record.kind != "number":
        return True
    value = decode(record, None, where="")
    try:
        stored = np.asarray(value).astype(np.dtype(wanted.dtype)).item()
    except OverflowError:
        return False
    return bool(stored == value or (stored != stored and value != value))


def place(value: Any, like: Any, *, where: str) -> Any:
    """Returns a decoded leaf as the same kind of object as `like`, on the devices of `like`.

    Args:
        value: what `decode` returned; it must fit `like` (see `mismatch`).
        like: an array, key, number or `jax.ShapeDtypeStruct` (with a sharding or without).
        where: the leaf's name, for messages.

    Raises:
        CheckpointError: jax can't hold the dtype, that is, float64 without `jax_enable_x64`.

    Example:
        >>> place(np.ones(2, np.float32), jnp.zeros(2), where="w")
        Array([1., 1.], dtype=float32)
    """
    if type(like) in _NUMBERS.values():
        return type(like)(value.item() if isinstance(value, np.ndarray) else value)
    if isinstance(like, np.generic):
        return np.asarray(value).astype(like.dtype)[()]
    if isinstance(like, np.ndarray):
        return np.asarray(value).astype(like.dtype, copy=False)
    if type(value) in _NUMBERS.values():
        value = np.asarray(value).astype(like.dtype)
    # An array that was never placed must not come back pinned to a device.
    sharding = like.sharding if getattr(like, "committed", True) else None
    if getattr(like, "weak_type", False) and value.shape == ():
        value = jnp.asarray(value.item())
    placed = jax.device_put(value, sharding)
    if placed.dtype != like.dtype:
        raise CheckpointError(
            f"jax can't hold {like.dtype} now: it became {placed.dtype}",
            where=where,
            fix="switch jax_enable_x64 on, as when the checkpoint was written",
        )
    return placed
