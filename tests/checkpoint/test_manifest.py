from __future__ import annotations

import json

import numpy as np
import pytest

from flaxtrain.checkpoint import manifest as module
from flaxtrain.checkpoint.leaves import LeafRecord
from flaxtrain.checkpoint.manifest import (
    FileRecord,
    Manifest,
    check_json,
    read_manifest,
    write_manifest,
)
from flaxtrain.errors import ArgumentTypeError, CheckpointError

EXAMPLE = Manifest(
    leaves={
        "z/kernel": LeafRecord("array", (2, 0), "bfloat16", "ab"),
        "a": LeafRecord("number", (), "int", value="7"),
        "é\ud800": LeafRecord("none"),
    },
    files={"d/x": FileRecord(3, "cd")},
    environment={"jax": "0"},
    meta={"epoch": 3, "names": ["a", None, 1.5, True]},
)


def test_a_manifest_comes_back_in_order(tmp_path):
    write_manifest(tmp_path, EXAMPLE)
    back = read_manifest(tmp_path)
    assert back == EXAMPLE
    assert list(back.leaves) == list(EXAMPLE.leaves)


def test_it_is_never_overwritten(tmp_path):
    write_manifest(tmp_path, EXAMPLE)
    with pytest.raises(FileExistsError):
        write_manifest(tmp_path, EXAMPLE)


def rewritten(**changes):
    def damage(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "has no manifest.json"),
        (lambda file: file.write_bytes(b""), "no JSON"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "no JSON"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "no JSON"),
        (lambda file: file.write_bytes(b"[" * 100_000), "no JSON"),
        (lambda file: file.write_text("3"), "does not say that it is a flaxtrain checkpoint"),
        (rewritten(format="other"), "does not say that it is a flaxtrain checkpoint"),
        (rewritten(sha256="0"), "not what was written"),
        (rewritten(body={}), "not what was written"),
        (rewritten(body=[]), "not what was written"),
        (rewritten(schema=2), "has layout 2, this version reads layout 1"),
    ],
)
def test_damage_is_told_in_one_short_error(tmp_path, damage, message):
    write_manifest(tmp_path, EXAMPLE)
    damage(tmp_path / "manifest.json")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in caught.value.where and caught.value.fix
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"leaves": {"a": {}}, "files": {}, "environment": {}, "meta": {}},
        {"leaves": {"a": {"kind": "x", "evil": 1}}, "files": {}, "environment": {}, "meta": {}},
        {"leaves": [], "files": {}, "environment": {}, "meta": {}},
    ],
)
def test_a_misshapen_body_with_a_right_digest_is_an_error_too(tmp_path, body):
    write_manifest(tmp_path, EXAMPLE)
    rewritten(body=body, sha256=module._digest(body))(tmp_path / "manifest.json")
    with pytest.raises(CheckpointError, match="missing or misshapen"):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path, monkeypatch):
    write_manifest(tmp_path, EXAMPLE)
    monkeypatch.setattr(module, "_MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        read_manifest(tmp_path)


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_manifest(tmp_path / "5")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": (1, 2)}}, "meta['a']['b']"),
        ({"a": [0, np.float32(1)]}, "meta['a'][1]"),
        ({1: 2}, "meta"),
        ({"loss": float("nan")}, "meta['loss']"),
        ({"loss": float("-inf")}, "meta['loss']"),
        ({"f": print}, "meta['f']"),
        ({"b": b"x"}, "meta['b']"),
    ],
)
def test_meta_that_json_would_change_is_refused_with_its_place(value, where):
    with pytest.raises(ArgumentTypeError) as caught:
        check_json(value, "meta")
    assert caught.value.where == where


def test_plain_json_is_accepted():
    check_json({"a": [1, 2.5, "x", None, True, {"b": []}], "": {}}, "meta")
