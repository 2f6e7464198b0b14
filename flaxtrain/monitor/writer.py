"""The writer protocol, and the writers that need no backend.

The methods are those of `clu.metric_writers.MetricWriter`: a writer of either library works in
the other. (clu's class can't be imported without TensorFlow; where somebody has imported it,
ours register with it.)
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flaxtrain.errors import ArgumentTypeError
from flaxtrain.monitor.host import as_floats, as_numpy, check_step
from flaxtrain.text import kind_of
from flaxtrain.typing import ArrayLike

__all__ = ["MemoryWriter", "MetricWriter", "MultiWriter", "NullWriter"]

Arrays = Mapping[str, ArrayLike]


@runtime_checkable
class MetricWriter(Protocol):
    """What the training loop calls; a step is the number of updates applied so far.

    Each `write_*` method takes a mapping from tags (`loss`, `params/Dense_0/kernel`) to values.
    """

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Writes tensors as the backend's own summaries."""
        ...

    def write_scalars(self, step: int, scalars: Arrays) -> None:
        """Writes one number per tag."""
        ...

    def write_images(self, step: int, images: Arrays) -> None:
        """Writes images `[n, height, width, channels]`, uint8 or floats in [0, 1]."""
        ...

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Writes videos `[n, time, height, width, channels]`."""
        ...

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Writes audio clips `[n, time, channels]`."""
        ...

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, as Markdown where the backend shows it."""
        ...

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the distribution of each array's entries."""
        ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the run's hyperparameters."""
        ...

    def flush(self) -> None:
        """Returns when everything is where a reader sees it."""
        ...

    def close(self) -> None:
        """Flushes and releases the backend; nothing may be written afterwards."""
        ...


class NullWriter:
    """Writes nothing: the base of writers that show only some kinds of values.

    Example:
        >>> NullWriter().write_scalars(1, {"loss": 0.5})
    """

    def __init__(self) -> None:
        clu = sys.modules.get("clu.metric_writers.interface")
        if clu is not None:
            clu.MetricWriter.register(type(self))

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Does nothing."""

    def write_scalars(self, step: int, scalars: Arrays) -> None:
        """Does nothing."""

    def write_images(self, step: int, images: Arrays) -> None:
        """Does nothing."""

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Does nothing."""

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Does nothing."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Does nothing."""

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Does nothing."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MemoryWriter(NullWriter):
    """Keeps everything that is written, for tests and notebooks.

    Attributes:
        scalars, images, videos, audios, histograms, texts, summaries: `{tag: [(step, value)]}`.
        hparams: the hyperparameters, merged over all calls.

    Example:
        >>> writer = MemoryWriter()
        >>> writer.write_scalars(10, {"loss": 0.5})
        >>> writer.write_scalars(20, {"loss": np.float32(0.25)})
        >>> writer.series("loss")
        ([10, 20], [0.5, 0.25])
    """

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.videos: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.audios: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.histograms: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.summaries: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.texts: dict[str, list[tuple[int, str]]] = {}
        self.hparams: dict[str, Any] = {}

    def series(self, tag: str) -> tuple[list[int], list[float]]:
        """Returns the steps and the values of one scalar tag; empty lists if there are none."""
        points = self.scalars.get(tag, [])
        return [step for step, _ in points], [value for _, value in points]

    def write_scalars(self, step: int, scalars: Arrays) -> None:
        """Keeps them as Python floats."""
        _append(self.scalars, check_step(step), as_floats(scalars))

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps them as numpy arrays; `metadata` is dropped."""
        _append(self.summaries, check_step(step), as_numpy(values))

    def write_images(self, step: int, images: Arrays) -> None:
        """Keeps them as numpy arrays."""
        _append(self.images, check_step(step), as_numpy(images))

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Keeps them as numpy arrays."""
        _append(self.videos, check_step(step), as_numpy(videos))

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Keeps them as numpy arrays."""
        _append(self.audios, check_step(step), as_numpy(audios))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Keeps them."""
        _append(self.texts, check_step(step), texts)

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Keeps the arrays themselves."""
        _append(self.histograms, check_step(step), as_numpy(arrays))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Keeps them; later calls add to earlier ones."""
        self.hparams.update(hparams)


def _append(table: dict[str, list[Any]], step: int, values: Mapping[str, Any]) -> None:
    for tag, value in values.items():
        table.setdefault(tag, []).append((step, value))


class MultiWriter(NullWriter):
    """Hands all to several writers; one that fails stops neither training nor the others.

    A failing writer is reported by one `RuntimeWarning`, and its lost calls are counted.

    Args:
        writers: each gets every call, in this order.
        strict: raise a writer's error, after the others were called, instead of counting it.

    Attributes:
        dropped: lost calls per writer, in the order of `writers`.

    Raises:
        ArgumentTypeError: something in `writers` is no writer.

    Example:
        >>> first, second = MemoryWriter(), MemoryWriter()
        >>> MultiWriter([first, second]).write_scalars(1, {"loss": 2.0})
        >>> second.scalars
        {'loss': [(1, 2.0)]}
    """

    def __init__(self, writers: Sequence[MetricWriter], *, strict: bool = False) -> None:
        super().__init__()
        self.writers = tuple(writers)
        for writer in self.writers:
            if not isinstance(writer, MetricWriter):
                raise ArgumentTypeError(
                    f"{kind_of(writer)} is no writer",
                    where="MultiWriter(writers)",
                    fix="pass objects with the methods of MetricWriter",
                )
        self.strict = strict
        self.dropped = [0] * len(self.writers)

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Hands the call on."""
        self._call("write_summaries", step, values, metadata)

    def write_scalars(self, step: int, scalars: Arrays) -> None:
        """Hands the call on; the values are copied from the device once for all writers."""
        self._call("write_scalars", check_step(step), as_floats(scalars))

    def write_images(self, step: int, images: Arrays) -> None:
        """Hands the call on."""
        self._call("write_images", step, images)

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Hands the call on."""
        self._call("write_videos", step, videos)

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Hands the call on."""
        self._call("write_audios", step, audios, sample_rate=sample_rate)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Hands the call on."""
        self._call("write_texts", step, texts)

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Hands the call on."""
        self._call("write_histograms", step, arrays, num_buckets)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Hands the call on."""
        self._call("write_hparams", hparams)

    def flush(self) -> None:
        """Flushes every writer."""
        self._call("flush")

    def close(self) -> None:
        """Closes every writer."""
        self._call("close")

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        failures = []
        for index, writer in enumerate(self.writers):
            try:
                getattr(writer, method)(*args, **kwargs)
            except Exception as error:
                self.dropped[index] += 1
                failures.append((index, error))
        if failures and self.strict:
            raise failures[0][1]
        for index, error in failures:
            if self.dropped[index] == 1:
                self._warn(index, method, error)

    def _warn(self, index: int, method: str, error: Exception) -> None:
        name = type(self.writers[index]).__name__
        warnings.warn(
            f"{name}.{method} failed, training goes on without what it should have written "
            f"({type(error).__name__}: {error}); further failures are counted in silence",
            RuntimeWarning,
            stacklevel=4,
        )
