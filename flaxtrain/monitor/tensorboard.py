"""Event files for TensorBoard, without TensorFlow.

tensorboardX supplies the record format and the protocol buffers. Its `SummaryWriter` is not
used: it writes from a thread behind a queue of ten, so that a full disk blocks training for
ever and `flush` returns before the events are written. Here the call that fails is the one that
raises.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import RecordWriter, summary
from tensorboardX.proto import event_pb2 as generated

from flaxtrain.checks import check_number
from flaxtrain.errors import ArgumentError, ArgumentTypeError, StateError
from flaxtrain.monitor.host import as_floats, as_numpy, check_step
from flaxtrain.monitor.writer import Arrays, NullWriter
from flaxtrain.tree import flatten, path_name

__all__ = ["TensorBoardWriter"]

event_pb2: Any = generated  # its classes are made at import, out of a type checker's sight
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\..*")
_BUCKETS = 30


class TensorBoardWriter(NullWriter):
    """Writes one run's event file, in the layout that TensorBoard reads.

    Use one writer per run directory and process, with the same tags in `train/` and `val/`, so
    that TensorBoard lays the curves over one another. Tags keep letters, digits and `_-./`;
    anything else becomes `_`.

    Args:
        logdir: the run's directory; made if needed.
        purge_step: when a run is resumed after this many updates: TensorBoard then hides what
            earlier files of the directory hold at this step and later, so curves don't double.
        flush_secs: at most this many seconds pass between a write and its flush by a later one.
        clock: seconds since the epoch.

    Raises:
        OSError: the directory or a file can't be written.

    Example:
        >>> import tempfile
        >>> run = tempfile.mkdtemp()
        >>> writer = TensorBoardWriter(run)
        >>> writer.write_scalars(1, {"loss": 0.5})
        >>> writer.close()
        >>> len(os.listdir(run))
        1
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        *,
        purge_step: int | None = None,
        flush_secs: float = 10,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        check_number("flush_secs", flush_secs, minimum=0, where="TensorBoardWriter")
        self.logdir = Path(logdir)
        self._flush_secs, self._clock = flush_secs, clock
        self._warned: set[str] = set()
        self._records: RecordWriter | None = _new_event_file(self.logdir, clock())
        self._flushed_at = clock()
        self._write(event_pb2.Event(file_version="brain.Event:2"), 0)
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(session_log=start), check_step(purge_step))
        self.flush()

    def write_scalars(self, step: int, scalars: Arrays) -> None:
        """Writes one number per tag; NaN and infinities are written as they are."""
        step = check_step(step)
        for tag, value in as_floats(scalars).items():
            self._summary(summary.scalar(tag, value), step)

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the distribution of each array's finite entries.

        Args:
            step: number of updates applied.
            arrays: real arrays of any shape. Entries that are NaN or infinite are left out,
                with one warning per tag.
            num_buckets: number of buckets by tag; default 30.
        """
        step = check_step(step)
        for tag, array in as_numpy(arrays).items():
            if np.iscomplexobj(array):
                raise ArgumentTypeError(
                    f"the histogram {tag!r} is of complex numbers",
                    where="write_histograms",
                    fix="write their absolute values, or real and imaginary part",
                )
            values = array.astype(np.float64).reshape(-1)
            finite = values[np.isfinite(values)]
            if finite.size < values.size:
                self._warn_once(tag, f"{values.size - finite.size} of {values.size} entries")
            if finite.size:
                buckets = (num_buckets or {}).get(tag, _BUCKETS)
                self._summary(_histogram(tag, finite, buckets), step)

    def write_images(self, step: int, images: Arrays) -> None:
        """Writes images as PNG; of several in one array, image `i` gets the tag `tag/i`.

        Args:
            step: number of updates applied.
            images: `[n, height, width, channels]` or `[height, width, channels]` with 1, 3 or 4
                channels; uint8, or floats in [0, 1] (clipped; NaN becomes black).

        Raises:
            ArgumentError: Pillow is not installed, or a shape or dtype is no image's.
        """
        step = check_step(step)
        if importlib.util.find_spec("PIL") is None:
            raise ArgumentError(
                "images need Pillow", where="write_images", fix="pip install pillow"
            )
        for tag, batch in as_numpy(images).items():
            pixels = _pixels(tag, batch)
            for index, image in enumerate(pixels):
                name = tag if len(pixels) == 1 else f"{tag}/{index}"
                self._summary(summary.image(name, image, dataformats="HWC"), step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts; TensorBoard renders Markdown, tables and fenced code."""
        step = check_step(step)
        for tag, text in texts.items():
            self._summary(summary.text(tag, str(text)), step)

    def write_hparams(self, hparams: Mapping[str, Any], metrics: Arrays | None = None) -> None:
        """Writes the run's row of the HParams table, into the sub-run `hparams/`.

        A later call, in a resumed run too, replaces the row.

        Args:
            hparams: nested dicts become tags such as `optimizer/learning_rate`. Values other
                than numbers, booleans and strings are written as text.
            metrics: the run's results to show beside them, such as its best accuracy.
        """
        row = {path_name(path): _plain(value) for path, value in flatten(hparams).items()}
        results = as_floats(metrics or {})
        before = list((self.logdir / "hparams").glob("events.out.tfevents.*"))
        with _Closing(_new_event_file(self.logdir / "hparams", self._clock())) as records:
            write = _writes_to(records, self._clock)
            write(event_pb2.Event(file_version="brain.Event:2"), 0)
            for part in summary.hparams(row, results):
                write(event_pb2.Event(summary=part), 0)
            for tag, value in results.items():
                write(event_pb2.Event(summary=summary.scalar(tag, value)), 0)
        for file in before:  # TensorBoard would show the oldest row
            file.unlink()

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Refuses: TensorBoard shows animated images only.

        Raises:
            ArgumentError: always.
        """
        raise _unsupported("videos", "write single frames with write_images")

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Refuses: encoding audio would need one more dependency.

        Raises:
            ArgumentError: always.
        """
        raise _unsupported("audio", "write a spectrogram with write_images")

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Refuses: such summaries are TensorFlow's own.

        Raises:
            ArgumentError: always.
        """
        raise _unsupported(
            "raw summaries", "use write_scalars, write_histograms or write_images"
        )

    def flush(self) -> None:
        """Returns when everything written so far is on the disk."""
        self._open().flush()
        self._flushed_at = self._clock()

    def close(self) -> None:
        """Flushes and closes the file; a second call does nothing."""
        if self._records is not None:
            records, self._records = self._records, None
            records.flush()
            records.close()

    def _open(self) -> RecordWriter:
        if self._records is None:
            raise StateError(
                "the writer is closed",
                where=f"TensorBoardWriter({str(self.logdir)!r})",
                fix="open a new one on the same directory",
            )
        return self._records

    def _summary(self, value: Any, step: int) -> None:
        self._write(event_pb2.Event(summary=value), step)

    def _write(self, event: Any, step: int) -> None:
        _writes_to(self._open(), self._clock)(event, step)
        if self._clock() - self._flushed_at >= self._flush_secs:
            self.flush()

    def _warn_once(self, tag: str, what: str) -> None:
        if tag not in self._warned:
            self._warned.add(tag)
            warnings.warn(
                f"histogram {tag!r}: {what} are not finite and are left out",
                RuntimeWarning,
                stacklevel=3,
            )


def _writes_to(records: RecordWriter, clock: Callable[[], float]) -> Callable[[Any, int], None]:
    def write(event: Any, step: int) -> None:
        event.wall_time, event.step = clock(), step
        records.write(event.SerializeToString())

    return write


class _Closing:
    """Closes a record file at the end of a `with` block, after flushing it."""

    def __init__(self, records: RecordWriter) -> None:
        self.records = records

    def __enter__(self) -> RecordWriter:
        return self.records

    def __exit__(self, *exception: object) -> None:
        self.records.flush()
        self.records.close()


def _new_event_file(directory: Path, now: float) -> RecordWriter:
    """Opens a file whose name sorts after those that are there; readers go by that order."""
    directory.mkdir(parents=True, exist_ok=True)
    matches = map(_EVENT_FILE.fullmatch, os.listdir(directory))
    newest = max((int(match[1]) for match in matches if match), default=-1)
    seconds = max(int(now), newest + 1)
    name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
    return RecordWriter(str(directory / name))


def _histogram(tag: str, values: np.ndarray, buckets: int) -> Any:
    counts, edges = np.histogram(values, bins=buckets)
    return summary.histogram_raw(
        tag,
        min=float(values.min()),
        max=float(values.max()),
        num=values.size,
        sum=float(values.sum()),
        sum_squares=float(values @ values),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )


def _pixels(tag: str, batch: np.ndarray) -> np.ndarray:
    batch = batch[None] if batch.ndim == 3 else batch
    is_float = batch.dtype.kind == "f" or batch.dtype.name == "bfloat16"
    if (
        batch.ndim != 4
        or batch.shape[-1] not in (1, 3, 4)
        or not (is_float or batch.dtype == np.uint8)
    ):
        raise ArgumentError(
            f"{tag!r} has shape {batch.shape} and dtype {batch.dtype}, which is no image's",
            where="write_images",
            fix="pass [n, height, width, channels] with 1, 3 or 4 channels, uint8 or floats",
        )
    if not is_float:
        return batch
    unit = np.clip(np.nan_to_num(batch.astype(np.float32), nan=0.0), 0.0, 1.0)
    return np.round(unit * 255.0).astype(np.uint8)


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, np.generic) or (hasattr(value, "shape") and value.shape == ()):
        value = np.asarray(value).item()
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _unsupported(what: str, fix: str) -> ArgumentError:
    return ArgumentError(
        f"TensorBoardWriter can't write {what}", where="TensorBoardWriter", fix=fix
    )
