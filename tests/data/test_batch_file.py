"""A batch in a file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.data import load_batch, save_batch
from flaxtrain.errors import DataError
from tests.runs import bits

BATCHES: dict[str, Any] = {
    "a dict in a tuple": ({"a/b": np.arange(3), "": np.ones((3, 2), bool)}, np.zeros(3)),
    "one array": np.array([[1.0, np.nan], [np.inf, -0.0]], np.float32),
    "small floats": {"x": np.asarray(jnp.ones((2, 3), jnp.bfloat16)), "h": np.ones(2, "f2")},
    "float8": {"x": np.asarray(jnp.ones((2, 3), jnp.float8_e4m3fn))},
    "names of arguments": {"file": np.ones(2), "allow_pickle": np.ones(2), "args": np.ones(2)},
    "lists and nothing": [{"x": [np.ones(2), np.zeros(1)], "none": None}, ()],
    "names that collide": {"": np.ones(2), "batch": np.zeros(2), "__mask__": np.ones(3)},
    "complex": {"z": np.ones((2,), np.complex64) * 1j},
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    batch = BATCHES[name]
    mask = np.array([True, False])
    loaded, found = load_batch(save_batch(tmp_path / "new" / "one.npz", batch, mask))
    assert jax.tree.structure(loaded) == jax.tree.structure(batch)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(batch), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    assert found is not None and found.tolist() == [True, False]


def test_arrays_of_a_device_are_saved_and_numpy_reads_them_by_name(tmp_path: Path) -> None:
    path = save_batch(tmp_path / "one.npz", {"x": {"y": jnp.arange(3)}})
    with np.load(path) as file:
        assert file["x/y"].tolist() == [0, 1, 2]
    assert load_batch(path)[1] is None


class Pair(NamedTuple):
    x: Any
    y: Any


REFUSED: dict[str, tuple[Any, str]] = {
    "a text": ({"x": {"name": "cat"}}, "x/name is a str"),
    "texts": ({"x": np.array(["cat"])}, "x has dtype <U3"),
    "objects": ({"x": np.array([{}], dtype=object)}, "x has dtype object"),
    "dates": ((np.ones(2), np.zeros(2, "M8[s]")), "1 has dtype datetime64"),
    "records": (np.zeros(2, [("a", "f4")]), "the batch has dtype"),
    "typed keys": ({"key": jax.random.key(0)}, "key is a typed key"),
    "a number as key": ({"x": {3: np.ones(2)}}, "x has the key 3, an int"),
    "a named tuple": ({"both": Pair(np.ones(2), np.ones(2))}, "both is a Pair"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_can_hold_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    batch, found = REFUSED[name]
    with pytest.raises(DataError) as caught:
        save_batch(tmp_path / "one.npz", batch)
    assert str(caught.value).startswith(found) and not list(tmp_path.iterdir())


def test_what_is_no_batch_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "pickled.npy", "text.npz", "missing.npz"):
        with pytest.raises(DataError, match="can't be read"):
            load_batch(tmp_path / name)


def test_a_damaged_file_is_refused_and_never_read_as_another_batch(tmp_path: Path) -> None:
    batch = {"x": np.arange(12.0), "label": (np.arange(3),)}
    path = save_batch(tmp_path / "one.npz", batch, np.array([True, False, True]))
    whole, read = path.read_bytes(), 0
    before = bits(load_batch(path))
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if rng.random() < 0.8 else whole[: rng.integers(len(whole))])
        try:
            found = load_batch(path)
        except DataError:
            continue
        # Some bits, such as those of the time, mean nothing.
        read += 1
        assert bits(found) == before
    # Of a changed array the checksum is another: only what lies between the arrays is not seen.
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        arrays = sum(entry.compress_size for entry in archive.infolist())
    assert read < 60 * (1 - arrays / len(whole))


def test_a_file_that_lacks_something_says_what(tmp_path: Path) -> None:
    for text, lacks in (
        (b'{"array": "x", "dtype": "float32"}', "'x'"),
        (b'{"new": 1}', "'array'"),
    ):
        np.savez(tmp_path / "one.npz", __structure__=np.frombuffer(text, np.uint8))
        with pytest.raises(DataError, match=f"it has no entry {lacks}"):
            load_batch(tmp_path / "one.npz")
