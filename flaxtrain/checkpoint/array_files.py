"""Files of named arrays: `.npz`, msgpack of flax, safetensors; and what else a file may be.

Every reader returns nested dicts of numpy arrays in the byte order of this machine, and raises
a `CheckpointError` for a file that is truncated, damaged or hostile.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np

from flaxtrain.checkpoint.named import name_keys, to_named
from flaxtrain.errors import CheckpointError
from flaxtrain.tree import unflatten

__all__ = ["format_of", "read_msgpack", "read_npz", "read_safetensors"]

_HEAD = 64
# A header of safetensors is shorter; the first eight bytes of anything else rarely say so.
_MAX_HEADER = 100 * 2**20
_OTHER = "use another copy of the file"
_SUPPORTED = "pass an .npz, .msgpack or .safetensors file, or a checkpoint directory"
_KNOWN_ELSE = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    (b"\x93NUMPY", "a single array (.npy); np.savez writes named ones"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (b"<", "a web page, or other markup"),
)
_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}


# Version 3 is for names of fields beyond Latin-1: such arrays are records, not numbers.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def format_of(file: Path) -> str:
    """Returns `npz`, `msgpack` or `safetensors`, by the first bytes.

    Raises:
        CheckpointError: it is none of them; the message says what it is, if that is known.
    """
    try:
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"can't read the file: {error}", where=str(file)) from None
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return "safetensors"
    # The first byte of a msgpack map of 1 to 15 entries, or of more; HDF5 begins so too.
    is_map = head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    known = next((text for begin, text in _KNOWN_ELSE if head.startswith(begin)), None)
    if is_map and known is None:
        return "msgpack"
    raise CheckpointError(_what_else(head, known), where=str(file), fix=_SUPPORTED)


def _what_else(head: bytes, known: str | None) -> str:
    if not head:
        return "the file is empty"
    if head[0] == 0x80 and head[1:2] and head[1] <= 5:
        return "the file is a pickle, which runs code when it is read: it is not opened"
    if known is None:
        return f"the file is of no known format; it begins with {head[:8]!r}"
    return f"the file is {known}"


@contextlib.contextmanager
def _reading(file: Path, format_name: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(
            "the file asks for more memory than there is", where=str(file), fix=_OTHER
        ) from None
    # Damaged bytes can make a parser raise anything; the text is all there is to say.
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"the {format_name} file is truncated or damaged: {text}",
            where=str(file),
            fix=_OTHER,
        ) from None


def read_msgpack(file: Path) -> dict[str, Any]:
    """Reads what `flax.serialization.to_bytes` or `msgpack_serialize` wrote."""
    with _reading(file, "msgpack"):
        # It begins with a map (see `format_of`), so it is a dict, or not msgpack.
        return to_named(flax.serialization.msgpack_restore(file.read_bytes()))


def read_npz(file: Path) -> dict[str, Any]:
    """Reads what `np.savez` or `np.savez_compressed` wrote."""
    with _reading(file, "npz"), zipfile.ZipFile(file) as archive:
        inside = archive.namelist()
        if any(name.endswith("data.pkl") for name in inside):
            raise CheckpointError(
                "the file is a checkpoint of PyTorch, a pickle that runs code when it is read: "
                "it is not opened",
                where=str(file),
                fix="save it again as .safetensors or .npz",
            )
        strangers = [name for name in inside if not name.endswith(".npy")]
        if strangers:
            raise CheckpointError(
                f"the file is a zip archive with other things than arrays: {strangers[0]!r}",
                where=str(file),
                fix=_SUPPORTED,
            )
        for info in archive.infolist():
            _check_length(archive, info, file)
        with np.load(file, allow_pickle=False) as arrays:
            return _nested({name: arrays[name] for name in arrays.files}, file)


def _check_length(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> None:
    """Refuses an array whose header asks for other bytes than follow, before any are kept."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = _HEADERS.get(version)
        shape, _, dtype = read(member) if read else ((), False, np.dtype(object))
        length = member.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        found = "holds objects, not numbers, and is not opened"
    elif dtype.kind not in "biufc":
        found = f"has dtype {dtype}, not numbers (an .npz file can't tell bfloat16)"
    elif length != info.file_size:
        found = "has another length than its header says"
    else:
        return
    raise CheckpointError(
        f"the array {info.filename.removesuffix('.npy')!r} {found}",
        where=str(file),
        fix="save plain arrays of numbers with np.savez",
    )


def read_safetensors(file: Path) -> dict[str, Any]:
    """Reads a file with the `safetensors` package, which is not one of our dependencies."""
    try:
        safetensors = importlib.import_module("safetensors")
    except ImportError:
        raise CheckpointError(
            "reading a safetensors file needs the package safetensors, which is not installed",
            where=str(file),
            fix="pip install safetensors, or convert the file to .npz",
        ) from None
    with _reading(file, "safetensors"):
        # The lowest level of the package: its numpy face does not know bfloat16.
        tensors = dict(safetensors.deserialize(file.read_bytes()))
        return _nested({name: _tensor(name, tensors[name], file) for name in tensors}, file)


def _tensor(name: str, entry: Mapping[str, Any], file: Path) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"the array {name!r} has dtype {entry['dtype']}, which is not supported",
            where=str(file),
            fix=f"save it as one of {', '.join(_DTYPES)}",
        )
    dtype = jnp.dtype(_DTYPES[entry["dtype"]])
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _nested(arrays: Mapping[str, np.ndarray], file: Path) -> dict[str, Any]:
    """Returns nested dicts; names are split at slashes, or at dots where no name has one."""
    slashes = any("/" in name for name in arrays)
    table: dict[tuple[str, ...], np.ndarray] = {}
    for name, array in arrays.items():
        path = name_keys(name) if slashes else tuple(name.split("."))
        table[path] = array.astype(array.dtype.newbyteorder("="), copy=False)
    # An array can't be below another: `a` and `a/b`.
    for path in table:
        above = next((path[:end] for end in range(1, len(path)) if path[:end] in table), None)
        if above is not None or "" in path:
            raise CheckpointError(
                f"the name {'/'.join(path)!r} "
                + (
                    "has an empty part" if "" in path else f"is below {'/'.join(above or ())!r}"
                ),
                where=str(file),
                fix="rename the arrays in the file",
            )
    return unflatten(table)
