from __future__ import annotations

import json
import platform

import jax
import pytest

from flaxtrain import checkpoint
from flaxtrain.checkpoint import Manifest, environment, environment_differences
from flaxtrain.errors import CheckpointError


def test_the_environment_says_what_decides_the_bits(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    monkeypatch.setenv("NPROC", "2")
    found = environment()
    assert found["jax"] == jax.__version__ and found["python"] == platform.python_version()
    assert found["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false" and found["NPROC"] == "2"
    assert found["device_count"] == jax.device_count() and found["jax_enable_x64"] is False
    assert json.loads(json.dumps(found)) == found


def test_nothing_else_of_the_process_environment_is_kept(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "canary-4711")
    assert "canary-4711" not in json.dumps(environment())


def test_the_same_environment_has_no_differences():
    assert environment_differences(Manifest(environment=environment())) == []


@pytest.mark.parametrize(
    ("saved", "now", "lines"),
    [
        ({"jax": "1"}, {"jax": "2"}, ["jax: 1 when saved, 2 now"]),
        ({"NPROC": "2"}, {"NPROC": None}, ["NPROC: 2 when saved, None now"]),
        ({"device_count": 1}, {"device_count": 8}, ["device_count: 1 when saved, 8 now"]),
        ({"cpu_count": 2}, {"cpu_count": 8}, ["cpu_count: 2 when saved, 8 now"]),
        ({"cpu_count": 2, "NPROC": "2"}, {"cpu_count": 8, "NPROC": "2"}, []),
        ({"gone": 1}, {}, ["gone: 1 when saved, None now"]),
        ({}, {"new": 1}, ["new: None when saved, 1 now"]),
    ],
)
def test_each_difference_is_a_line(saved, now, lines):
    assert environment_differences(Manifest(environment=saved), now) == lines


def test_a_path_of_a_checkpoint_will_do(tmp_path):
    path = checkpoint.save(tmp_path / "1", {"w": 1.0})
    assert environment_differences(path) == []
    assert environment_differences(str(path), {**environment(), "jax": "0"}) == [
        f"jax: {jax.__version__} when saved, 0 now"
    ]
    with pytest.raises(CheckpointError):
        environment_differences(tmp_path / "2")
