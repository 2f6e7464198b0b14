"""What a run shows of itself: TensorBoard, console and memory writers, and its speed."""

from __future__ import annotations

from flaxtrain.monitor.console import ConsoleWriter
from flaxtrain.monitor.tensorboard import TensorBoardWriter
from flaxtrain.monitor.throughput import Throughput
from flaxtrain.monitor.writer import MemoryWriter, MetricWriter, MultiWriter, NullWriter

__all__ = [
    "ConsoleWriter",
    "MemoryWriter",
    "MetricWriter",
    "MultiWriter",
    "NullWriter",
    "TensorBoardWriter",
    "Throughput",
]
