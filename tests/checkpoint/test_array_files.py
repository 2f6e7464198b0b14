"""Files that real libraries wrote, and files that are something else.

safetensors is not installed where these tests run: its reader is tested with a stand-in for
`safetensors.deserialize`, written here from the public description of the format. What that
shows is our side of the call; the package itself is tested only where it can be imported.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.checkpoint.array_files import (
    format_of,
    read_msgpack,
    read_npz,
    read_safetensors,
)
from flaxtrain.errors import CheckpointError

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def to_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The format: eight bytes of length, a JSON header, then the bytes of all arrays."""
    names = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "float8_e8m0fnu": "F8_E8M0"}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    body = b""
    for name, array in arrays.items():
        offsets = [len(body), len(body) + array.nbytes]
        dtype = names[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def stand_in_deserialize(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What `safetensors.deserialize` returns, by its type stub."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    body = content[8 + length :]
    result = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if end > len(body):
            raise ValueError("Error while deserializing: MetadataIncompleteBuffer")
        data = bytearray(body[begin:end])
        result.append((name, {"dtype": entry["dtype"], "shape": entry["shape"], "data": data}))
    return result


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("safetensors")
    module.deserialize = stand_in_deserialize
    monkeypatch.setitem(sys.modules, "safetensors", module)


def test_msgpack_of_flax(tmp_path: Path) -> None:
    tree = {"a": {"kernel": KERNEL, "half": jnp.ones(2, jnp.bfloat16)}, "0": [np.int8(3), 4]}
    file = tmp_path / "checkpoint_100"
    file.write_bytes(flax.serialization.to_bytes(tree))
    assert format_of(file) == "msgpack"
    read = read_msgpack(file)
    assert np.array_equal(read["a"]["kernel"], KERNEL)
    assert read["a"]["half"].dtype == jnp.bfloat16 and read["0"] == {"0": 3, "1": 4}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_slashes(tmp_path: Path, save: Any) -> None:
    file = tmp_path / "model.npz"
    arrays = {"a/norm.1/scale": np.ones(2), "b.c": np.zeros((2, 0)), r"wn/d\/k": np.int32(3)}
    save(file, **arrays)
    assert format_of(file) == "npz"
    read = read_npz(file)
    assert read["a"]["norm.1"]["scale"].tolist() == [1, 1]
    assert read["b.c"].shape == (2, 0) and int(read["wn"]["d/k"]) == 3


def test_npz_with_dots_and_foreign_byte_order(tmp_path: Path) -> None:
    file = tmp_path / "model.npz"
    np.savez(
        file, **{"layer.0.weight": KERNEL.astype(">f4"), "head": np.asfortranarray(KERNEL)}
    )
    read = read_npz(file)
    assert read["layer"]["0"]["weight"].dtype == np.float32
    assert np.array_equal(read["layer"]["0"]["weight"], KERNEL)
    assert np.array_equal(read["head"], KERNEL)


@pytest.mark.usefixtures("stand_in")
def test_safetensors_with_a_stand_in(tmp_path: Path) -> None:
    arrays = {
        "enc.kernel": KERNEL,
        "enc.half": np.ones(3, jnp.bfloat16),
        "count": np.array(2**40),
    }
    file = tmp_path / "model.safetensors"
    file.write_bytes(to_safetensors(arrays))
    assert format_of(file) == "safetensors"
    read = read_safetensors(file)
    assert np.array_equal(read["enc"]["kernel"], KERNEL) and int(read["count"]) == 2**40
    assert read["enc"]["half"].dtype == jnp.bfloat16
    file.write_bytes(to_safetensors(arrays)[:-4])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_safetensors(file)
    file.write_bytes(to_safetensors({"x": np.ones(2, jnp.float8_e8m0fnu)}))
    with pytest.raises(CheckpointError, match="'x' has dtype F8_E8M0, which is not supported"):
        read_safetensors(file)


def test_safetensors_of_the_package_itself(tmp_path: Path) -> None:
    written_by = pytest.importorskip("safetensors.numpy", reason="it is not a dependency")
    file = tmp_path / "model.safetensors"
    written_by.save_file({"a.kernel": KERNEL}, file)
    assert np.array_equal(read_safetensors(file)["a"]["kernel"], KERNEL)


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)  # what Python does if it's absent
    file = tmp_path / "model.safetensors"
    file.write_bytes(to_safetensors({"a": KERNEL}))
    with pytest.raises(CheckpointError, match="needs the package safetensors") as caught:
        read_safetensors(file)
    assert "pip install safetensors" in str(caught.value.fix)


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was executed",))


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claims_more(array: np.ndarray) -> bytes:
    """An array of four numbers whose header says that there are 10^12."""
    content = npy(array)
    assert b"(4,), " in content
    begin = content.index(b"(4,), ")
    longer = b"(1000000000000,), "
    rest = content[begin + 6 :].replace(b" " * (len(longer) - 6), b"", 1)
    return content[:begin] + longer + rest


REAL_OBJECTS = np.array([Canary(), {}], dtype=object)

NO_ARRAYS = [
    ("pickle.msgpack", pickle.dumps({"a": Canary()}), "is a pickle, which runs code"),
    ("old.pkl", pickle.dumps({"a": 1}, protocol=2), "is a pickle, which runs code"),
    ("empty.npz", b"", "the file is empty"),
    ("one.npy", npy(KERNEL), "a single array"),
    ("keras.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 80, "HDF5"),
    ("model.npz.gz", gzip.compress(npz(a=KERNEL)), "compressed with gzip"),
    ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ("page.npz", b"<!DOCTYPE html><html>404</html>", "a web page"),
    ("notes.txt", b"hello", "is of no known format; it begins with b'hello'"),
    ("config.json", b'{"a": 1}', "is of no known format"),
]


@pytest.mark.parametrize(("name", "content", "text"), NO_ARRAYS, ids=[n for n, *_ in NO_ARRAYS])
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, name: str, content: bytes, text: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        format_of(file)
    assert text in caught.value.found and caught.value.where == str(file)


BAD_NPZ = [
    (zipped(archive__data_dot_pkl=b"", archive__data__0=b"\0"), "a checkpoint of PyTorch"),
    (zipped(readme_dot_txt=b"hello"), "other things than arrays: 'readme.txt'"),
    (npz(a=REAL_OBJECTS), "'a' holds objects, not numbers"),
    (npz(a=np.ones(2, jnp.bfloat16)), "can't tell bfloat16"),
    (npz(a=np.array(["text"])), "'a' has dtype <U4, not numbers"),
    (zipped(a_dot_npy=claims_more(np.ones(4))), "'a' has another length than its header says"),
    (zipped(a_dot_npy=npy(np.ones(4))[:-8]), "'a' has another length than its header says"),
    (zipped(a_dot_npy=b"no array"), "truncated or damaged"),
    (npz(a=KERNEL)[:-30], "truncated or damaged"),
    (npz(**{"a": KERNEL, "a/b": KERNEL}), "the name 'a/b' is below 'a'"),
    (npz(**{"a//b": KERNEL}), "has an empty part"),
]


@pytest.mark.parametrize(("content", "text"), BAD_NPZ, ids=[text for _, text in BAD_NPZ])
def test_a_bad_npz_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, content: bytes, text: str
) -> None:
    file = tmp_path / "model.npz"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_npz(file)
    assert text in caught.value.found and caught.value.fix


def test_a_truncated_msgpack_never_gives_a_tree(tmp_path: Path) -> None:
    content = flax.serialization.to_bytes({"a": {"kernel": KERNEL}, "b": KERNEL})
    file = tmp_path / "model.msgpack"
    for length in range(1, len(content), 5):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_msgpack(file)


def test_flipped_bits_in_a_file_are_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, read, content in (
        ("a.npz", read_npz, npz(**{"a/b": KERNEL, "c": KERNEL})),
        ("a.msgpack", read_msgpack, flax.serialization.to_bytes({"a": {"b": KERNEL}})),
    ):
        file = tmp_path / name
        for _ in range(100):
            damaged = bytearray(content)
            damaged[random.integers(len(content))] ^= 1 << random.integers(8)
            file.write_bytes(damaged)
            try:
                read(file)
            except CheckpointError as error:
                assert error.where == str(file)
