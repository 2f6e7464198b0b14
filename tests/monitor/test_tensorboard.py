from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import RecordWriter

from flaxtrain.errors import ArgumentError, ArgumentTypeError, StateError
from flaxtrain.monitor import MemoryWriter, MultiWriter, TensorBoardWriter

ROOT = Path(__file__).resolve().parents[2]


def read(logdir) -> EventAccumulator:
    return EventAccumulator(
        str(logdir), size_guidance={"images": 0, "tensors": 0, "histograms": 0}
    ).Reload()


def curve(logdir, tag="loss"):
    return [(event.step, event.value) for event in read(logdir).Scalars(tag)]


def written(logdir, method, *args, **kwargs):
    writer = TensorBoardWriter(logdir)
    getattr(writer, method)(*args, **kwargs)
    writer.close()
    return read(logdir)


class TestScalars:
    def test_curves_read_back(self, tmp_path):
        writer = TensorBoardWriter(tmp_path)
        for step in range(0, 30, 10):
            writer.write_scalars(step, {"loss": jnp.float32(step / 4), "norm/grad": step})
        writer.close()
        assert curve(tmp_path) == [(0, 0.0), (10, 2.5), (20, 5.0)]
        assert sorted(read(tmp_path).Tags()["scalars"]) == ["loss", "norm/grad"]

    def test_values_that_are_not_finite_are_written_as_they_are(self, tmp_path):
        scalars = {"a": np.nan, "b": np.inf}
        events = written(tmp_path, "write_scalars", 1, scalars)
        assert np.isnan(events.Scalars("a")[0].value) and events.Scalars("b")[0].value == np.inf

    def test_wall_time_is_the_clocks(self, tmp_path):
        writer = TensorBoardWriter(tmp_path, clock=lambda: 1234.5)
        writer.write_scalars(1, {"loss": 1.0})
        writer.close()
        assert read(tmp_path).Scalars("loss")[0].wall_time == 1234.5


class TestResume:
    def test_curves_dont_double_after_a_resume(self, tmp_path):
        first = TensorBoardWriter(tmp_path)
        for step in range(10):
            first.write_scalars(step, {"loss": 1.0})
        first.close()
        second = TensorBoardWriter(tmp_path, purge_step=6)
        for step in range(6, 12):
            second.write_scalars(step, {"loss": 2.0})
        second.close()
        assert curve(tmp_path) == [(s, 1.0) for s in range(6)] + [
            (s, 2.0) for s in range(6, 12)
        ]

    def test_without_purge_step_both_are_kept(self, tmp_path):
        """The control: the purge is what keeps curves from doubling."""
        for value in (1.0, 2.0):
            writer = TensorBoardWriter(tmp_path)
            writer.write_scalars(5, {"loss": value})
            writer.close()
        assert curve(tmp_path) == [(5, 1.0), (5, 2.0)]

    @pytest.mark.parametrize("second_clock", [1000.0, 1000.9, 5.0])
    def test_files_of_one_second_or_of_a_clock_set_back_stay_in_order(
        self, tmp_path, second_clock
    ):
        for now, value, purge in ((1000.0, 1.0, None), (second_clock, 2.0, 3)):
            writer = TensorBoardWriter(tmp_path, purge_step=purge, clock=lambda now=now: now)
            writer.write_scalars(3, {"loss": value})
            writer.close()
        assert len(os.listdir(tmp_path)) == 2
        assert curve(tmp_path) == [(3, 2.0)]


class TestHistograms:
    def test_the_distribution_reads_back(self, tmp_path):
        values = np.random.default_rng(0).normal(size=(20, 50))
        events = written(tmp_path, "write_histograms", 3, {"w": jnp.asarray(values)})
        event = events.Histograms("w")[0]
        found = event.histogram_value
        assert event.step == 3 and found.num == 1000 and sum(found.bucket) == 1000
        # jnp holds float32
        assert found.min == pytest.approx(values.min(), rel=1e-6)
        assert found.sum == pytest.approx(values.sum(), rel=1e-4)

    def test_the_number_of_buckets_can_be_set_per_tag(self, tmp_path):
        arrays = {"a": np.arange(100.0), "b": np.arange(100.0)}
        events = written(tmp_path, "write_histograms", 1, arrays, {"b": 4})
        # the accumulator adds an empty bucket below the first
        sizes = [len(events.Histograms(tag)[0].histogram_value.bucket) for tag in "ab"]
        assert sizes[1] in (4, 5) and sizes[0] in (30, 31)

    def test_entries_that_are_not_finite_are_left_out_and_told_once(self, tmp_path):
        array = np.array([1.0, np.nan, 2.0, np.inf])
        writer = TensorBoardWriter(tmp_path)
        with pytest.warns(
            RuntimeWarning, match="histogram 'w': 2 of 4 entries are not"
        ) as seen:
            writer.write_histograms(1, {"w": array})
            writer.write_histograms(2, {"w": array})
        assert len(seen) == 1
        with pytest.warns(RuntimeWarning, match="3 of 3"):
            writer.write_histograms(3, {"v": np.full(3, np.nan)})
        writer.close()
        assert [event.histogram_value.num for event in read(tmp_path).Histograms("w")] == [2, 2]

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, np.bool_, np.int8, np.float16])
    def test_every_real_dtype_is_accepted(self, tmp_path, dtype):
        events = written(tmp_path, "write_histograms", 1, {"w": jnp.ones(4, dtype)})
        assert events.Histograms("w")[0].histogram_value.sum == 4

    def test_complex_arrays_are_refused(self, tmp_path):
        with pytest.raises(ArgumentTypeError, match="of complex numbers"):
            TensorBoardWriter(tmp_path).write_histograms(1, {"w": np.ones(2, complex)})


class TestImages:
    @staticmethod
    def pixels(event):
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))

    def test_several_images_get_numbered_tags(self, tmp_path):
        images = jnp.zeros((2, 4, 5, 3)).at[1].set(1.0)
        events = written(tmp_path, "write_images", 7, {"x": images})
        assert events.Tags()["images"] == ["x/0", "x/1"]
        assert self.pixels(events.Images("x/1")[0]).shape == (4, 5, 3)
        assert self.pixels(events.Images("x/1")[0]).min() == 255
        assert self.pixels(events.Images("x/0")[0]).max() == 0

    def test_floats_are_clipped_and_bytes_kept(self, tmp_path):
        floats = np.array([-1.0, 0.5, 2.0, np.nan]).reshape(2, 2, 1)
        raw = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        events = written(tmp_path, "write_images", 1, {"floats": floats, "raw": raw})
        gray = self.pixels(events.Images("floats")[0])[..., 0]
        assert gray.reshape(-1).tolist() == [0, 128, 255, 0]
        assert np.array_equal(self.pixels(events.Images("raw")[0]), raw)

    @pytest.mark.parametrize(
        "array", [np.zeros((4, 4)), np.zeros((1, 4, 4, 2)), np.zeros((4, 4, 3), np.int32)]
    )
    def test_what_is_no_image_is_refused(self, tmp_path, array):
        with pytest.raises(ArgumentError, match="which is no image's"):
            TensorBoardWriter(tmp_path).write_images(1, {"x": array})

    def test_without_pillow_the_error_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ArgumentError, match="images need Pillow") as caught:
            TensorBoardWriter(tmp_path).write_images(1, {"x": np.zeros((2, 2, 3))})
        assert caught.value.fix == "pip install pillow"


def test_texts_read_back(tmp_path):
    events = written(tmp_path, "write_texts", 2, {"spec": "| a | b |\n|---|---|"})
    tensor = events.Tensors("spec/text_summary")[0]
    assert tensor.step == 2 and tensor.tensor_proto.string_val == [b"| a | b |\n|---|---|"]


class TestHyperparameters:
    def test_they_go_to_a_named_run_of_their_own(self, tmp_path):
        hparams = {
            "opt": {"name": "adamw", "lr": np.float32(0.5)},
            "ema": None,
            "nesterov": True,
        }
        writer = TensorBoardWriter(tmp_path)
        writer.write_hparams(hparams, metrics={"accuracy": jnp.float32(0.75)})
        writer.close()
        row = self.row(tmp_path / "hparams")
        assert row["opt/name"].string_value == "adamw" and row["opt/lr"].number_value == 0.5
        assert row["ema"].string_value == "None" and row["nesterov"].bool_value is True
        assert curve(tmp_path / "hparams", "accuracy") == [(0, 0.75)]

    def test_a_second_call_shows_the_newest_values(self, tmp_path):
        writer = TensorBoardWriter(tmp_path)
        writer.write_hparams({"lr": 1.0})
        writer.write_hparams({"lr": 2.0}, metrics={"accuracy": 0.5})
        writer.close()
        assert len(os.listdir(tmp_path / "hparams")) == 1
        assert self.row(tmp_path / "hparams")["lr"].number_value == 2.0

    @staticmethod
    def row(logdir):
        from tensorboard.plugins.hparams import plugin_data_pb2

        content = (
            read(logdir).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        )
        return plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams


@pytest.mark.parametrize(
    ("method", "args", "kwargs"),
    [
        ("write_videos", (1, {"v": np.zeros((1, 2, 2, 2, 1))}), {}),
        ("write_audios", (1, {"a": np.zeros((1, 8, 1))}), {"sample_rate": 8}),
        ("write_summaries", (1, {"s": np.zeros(2)}), {}),
    ],
)
def test_what_it_cant_write_is_an_error_not_silence(tmp_path, method, args, kwargs):
    with pytest.raises(ArgumentError, match="can't write") as caught:
        getattr(TensorBoardWriter(tmp_path), method)(*args, **kwargs)
    assert "write_images" in caught.value.fix


class TestFile:
    def test_flush_makes_everything_visible(self, tmp_path):
        writer = TensorBoardWriter(tmp_path, flush_secs=1e9)
        for step in range(100):
            writer.write_scalars(step, {"loss": 1.0})
        writer.flush()
        assert len(curve(tmp_path)) == 100
        writer.close()

    def test_it_flushes_by_itself_once_the_time_is_up(self, tmp_path):
        now = [0.0]
        writer = TensorBoardWriter(tmp_path, flush_secs=10, clock=lambda: now[0])
        writer.write_scalars(1, {"loss": 1.0})
        assert read(tmp_path).Tags()["scalars"] == []
        now[0] = 10.0
        writer.write_scalars(2, {"loss": 1.0})
        assert len(curve(tmp_path)) == 2
        writer.close()

    def test_a_closed_writer_says_so(self, tmp_path):
        writer = TensorBoardWriter(tmp_path)
        writer.close()
        writer.close()
        with pytest.raises(StateError, match="the writer is closed"):
            writer.write_scalars(1, {"loss": 1.0})

    def test_a_disk_that_is_full_fails_the_call_and_a_multi_writer_goes_on(self, tmp_path):
        """tensorboardX's own writer thread would die and block the eleventh call for ever."""
        writer = TensorBoardWriter(tmp_path, flush_secs=0)
        writer._records = full = RecordWriter("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            writer.write_scalars(1, {"loss": 1.0})
        memory = MemoryWriter()
        both = MultiWriter([writer, memory])
        with pytest.warns(RuntimeWarning, match="No space left"):
            for step in range(20):
                both.write_scalars(step, {"loss": 1.0})
        assert both.dropped == [20, 0] and len(memory.series("loss")[0]) == 20
        with contextlib.suppress(OSError):  # what is still buffered can't be written either
            writer.close()
        with contextlib.suppress(OSError):
            full._writer.close()

    def test_a_directory_that_cant_be_made_fails_at_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            TensorBoardWriter(tmp_path / "file" / "run")

    @pytest.mark.usefixtures("unchecked_types")
    @pytest.mark.parametrize("purge_step", [-1, 1.5])
    def test_wrong_arguments_are_refused(self, tmp_path, purge_step):
        with pytest.raises((ArgumentError, ArgumentTypeError)):
            TensorBoardWriter(tmp_path, purge_step=purge_step)
        with pytest.raises(ArgumentError):
            TensorBoardWriter(tmp_path, flush_secs=-1)


def test_writing_loads_neither_tensorflow_nor_torch(tmp_path):
    script = (
        "import sys, numpy as np; from flaxtrain.monitor import TensorBoardWriter\n"
        "w = TensorBoardWriter(sys.argv[1], purge_step=3)\n"
        "w.write_scalars(3, {'a': 1.0}); w.write_histograms(3, {'h': np.ones(3)})\n"
        "w.write_texts(3, {'t': 'x'}); w.write_hparams({'lr': 1.0}); w.close()\n"
        "bad = ('optax', 'tensorflow', 'torch', 'tensorboard')\n"
        "print([m for m in bad if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"
