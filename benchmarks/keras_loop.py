"""The training of `fit_loop.py` by Keras on the JAX backend.

Keras is as it comes, and is spared what the others do: it computes no norms. Its metrics are
read and written by a callback that runs beside the training (`async_safe`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from hand_loop import LEARNING_RATE, WEIGHT_DECAY, Case
from keras import layers
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

PACKAGES = ("keras",)


class Log(keras.callbacks.Callback):
    """Writes loss and accuracy of the window at log points; Keras has those of the epoch."""

    async_safe = True

    def __init__(self, logdir: Path, log_every: int) -> None:
        super().__init__()
        self.writer, self.log_every, self.before = SummaryWriter(str(logdir)), log_every, 0
        self.sums = {"loss": 0.0, "accuracy": 0.0}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Write at a log point; `batch` is the last one of the execution, from 0."""
        if (batch + 1) % self.log_every == 0 and logs:
            for name, before in self.sums.items():
                self.sums[name] = float(logs[name]) * (batch + 1)
                mean = (self.sums[name] - before) / self.log_every
                self.writer.add_scalar(name, mean, self.before + batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count on; batches are numbered anew in each epoch."""
        assert self.params is not None
        self.before += self.params["steps"]
        self.sums = dict.fromkeys(self.sums, 0.0)


class KerasLoop:
    """`model.fit`; continues where the call before left off."""

    def __init__(self, case: Case, logdir: Path, steps_per_execution: int) -> None:
        keras.utils.set_random_seed(0)
        self.case, self.log = case, Log(logdir, case.log_every)
        shape = case.image.shape[1:]
        self.model = keras.Sequential(
            [layers.Input(shape), *_layers(convolutions=len(shape) > 1)]
        )
        tx = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8)
        tx.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.model.compile(
            tx,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            steps_per_execution=steps_per_execution,
        )

    def run(self, steps: int) -> None:
        """Train for so many steps, which have to be whole epochs; it waits for the result."""
        image, label, size = self.case.image, self.case.label, self.case.batch_size
        per_epoch = len(label) // size
        self.model.fit(
            image, label, size, epochs=steps // per_epoch, verbose=0, callbacks=[self.log]
        )
        jax.block_until_ready([variable.value for variable in self.model.variables])
        self.log.writer.flush()

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of some examples, with running statistics."""
        return np.asarray(self.model(image, training=False))


def _layers(convolutions: bool) -> list[Any]:
    """Return the layers of `hand_loop.CNN` or `hand_loop.MLP`, with flax's initial values."""

    def dense(features: int, **options: Any) -> Any:
        return layers.Dense(features, kernel_initializer="lecun_normal", **options)

    if not convolutions:
        return [dense(512, activation="relu"), dense(512, activation="relu"), dense(10)]
    stack: list[Any] = []
    for features in (16, 32):
        stack += [
            layers.Conv2D(
                features, 3, strides=2, padding="same", kernel_initializer="lecun_normal"
            ),
            layers.BatchNormalization(momentum=0.99, epsilon=1e-5),
            layers.ReLU(),
        ]
    return [*stack, layers.Flatten(), dense(128, activation="relu"), dense(10)]
