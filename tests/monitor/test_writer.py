from __future__ import annotations

import sys
import types
import warnings
from abc import ABC

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.monitor import (
    ConsoleWriter,
    MemoryWriter,
    MetricWriter,
    MultiWriter,
    NullWriter,
    TensorBoardWriter,
)

# Of clu.metric_writers.MetricWriter, which can't be imported without TensorFlow.
CLU_METHODS = [
    *("write_summaries", "write_scalars", "write_images", "write_videos", "write_audios"),
    *("write_texts", "write_histograms", "write_hparams", "flush", "close"),
]
CALLS = [
    ("write_scalars", (1, {"loss": 0.5}), {}),
    ("write_summaries", (1, {"s": np.ones(2)}), {"metadata": None}),
    ("write_images", (1, {"i": np.zeros((1, 2, 2, 1))}), {}),
    ("write_videos", (1, {"v": np.zeros((1, 2, 2, 2, 1))}), {}),
    ("write_audios", (1, {"a": np.zeros((1, 8, 1))}), {"sample_rate": 8000}),
    ("write_texts", (1, {"t": "hello"}), {}),
    ("write_histograms", (1, {"h": np.ones(3)}), {"num_buckets": {"h": 2}}),
    ("write_hparams", ({"lr": 0.1},), {}),
    ("flush", (), {}),
    ("close", (), {}),
]


class Broken(NullWriter):
    def write_scalars(self, step, scalars):
        raise OSError("disk full")

    def close(self):
        raise OSError("disk full")


@pytest.mark.parametrize("cls", [NullWriter, MemoryWriter, ConsoleWriter, TensorBoardWriter])
def test_every_writer_has_the_methods_of_clu(cls, tmp_path):
    writer = cls(tmp_path) if cls is TensorBoardWriter else cls()
    assert isinstance(writer, MetricWriter)
    assert all(callable(getattr(writer, name)) for name in CLU_METHODS)
    assert isinstance(MultiWriter([writer]), MetricWriter)
    writer.close()


def test_writers_register_with_clu_once_somebody_has_imported_it(monkeypatch):
    clu_class = type("MetricWriter", (ABC,), {})
    module = types.SimpleNamespace(MetricWriter=clu_class)
    monkeypatch.setitem(sys.modules, "clu.metric_writers.interface", module)
    assert isinstance(MemoryWriter(), clu_class) and isinstance(MultiWriter([]), clu_class)


def test_no_writer_imports_tensorflow_or_clus_writers():
    MemoryWriter()
    assert not {"tensorflow", "torch", "clu.metric_writers"} & set(sys.modules)


class TestMemoryWriter:
    def test_it_keeps_everything_by_tag_and_step(self):
        writer = MemoryWriter()
        for method, args, kwargs in CALLS:
            getattr(writer, method)(*args, **kwargs)
        writer.write_scalars(2, {"loss": jnp.float32(0.25)})
        assert writer.series("loss") == ([1, 2], [0.5, 0.25])
        assert writer.series("accuracy") == ([], [])
        assert writer.texts == {"t": [(1, "hello")]} and writer.hparams == {"lr": 0.1}
        step, image = writer.images["i"][0]
        assert step == 1 and image.shape == (1, 2, 2, 1)
        assert writer.histograms["h"][0][1].tolist() == [1, 1, 1]
        assert set(writer.videos) | set(writer.audios) | set(writer.summaries) == {
            "v",
            "a",
            "s",
        }

    def test_hyperparameters_add_up(self):
        writer = MemoryWriter()
        writer.write_hparams({"a": 1, "b": 2})
        writer.write_hparams({"b": 3})
        assert writer.hparams == {"a": 1, "b": 3}

    def test_wrong_steps_and_values_are_refused(self):
        with pytest.raises(ArgumentError):
            MemoryWriter().write_scalars(-1, {"loss": 1.0})
        with pytest.raises(ArgumentTypeError):
            MemoryWriter().write_scalars(1, {"loss": np.ones(2)})


class TestMultiWriter:
    @pytest.mark.parametrize(("method", "args", "kwargs"), CALLS)
    def test_every_call_reaches_every_writer_as_it_was(self, method, args, kwargs):
        calls = []

        class Recorder(NullWriter):
            def __getattribute__(self, name):
                if name not in CLU_METHODS:
                    return super().__getattribute__(name)
                return lambda *a, **k: calls.append((name, a, k))

        getattr(MultiWriter([Recorder(), Recorder()]), method)(*args, **kwargs)
        assert len(calls) == 2
        for name, given, named in calls:
            assert name == method and given[: len(args)] == args
            passed = [*given, *named.values()]
            assert all(any(value is p for p in passed) for value in kwargs.values())

    def test_a_writer_that_fails_is_told_once_counted_and_stops_nobody(self):
        memory = MemoryWriter()
        writer = MultiWriter([Broken(), memory])
        with pytest.warns(RuntimeWarning, match=r"Broken\.write_scalars failed.*disk full"):
            writer.write_scalars(1, {"loss": 1.0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            writer.write_scalars(2, {"loss": 2.0})
            writer.close()
        assert memory.series("loss") == ([1, 2], [1.0, 2.0])
        assert writer.dropped == [3, 0]

    def test_a_strict_one_raises_after_the_others_were_served(self):
        memory = MemoryWriter()
        writer = MultiWriter([Broken(), memory], strict=True)
        with pytest.raises(OSError, match="disk full"):
            writer.write_scalars(1, {"loss": 1.0})
        assert memory.series("loss") == ([1], [1.0])

    def test_interrupts_are_not_swallowed(self):
        class Interrupted(NullWriter):
            def flush(self):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            MultiWriter([Interrupted()]).flush()

    def test_wrong_values_are_the_callers_fault_and_raise(self):
        with pytest.raises(ArgumentTypeError):
            MultiWriter([MemoryWriter()]).write_scalars(1, {"loss": np.ones(2)})

    def test_what_is_no_writer_is_refused(self):
        with pytest.raises(ArgumentTypeError, match="a dict is no writer"):
            MultiWriter([{}])  # type: ignore[list-item]

    def test_writers_nest(self):
        memory = MemoryWriter()
        MultiWriter([MultiWriter([memory])]).write_texts(1, {"t": "x"})
        assert memory.texts == {"t": [(1, "x")]}
