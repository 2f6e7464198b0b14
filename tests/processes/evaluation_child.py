"""One pass over data after a run; `python evaluation_child.py CALL list|generator BATCHES`.

CALL is a method of the Trainer, BATCHES the number of this process's batches. A process waits
for two seconds after its last step, and not for as long as users do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft
from flaxtrain.loop import several_processes


class Net(nn.Module):
    """`[rows, 4] -> [rows, 2]`, with BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(2)(nn.BatchNorm(not train)(x))


def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(jax.process_index())
    for _ in range(count):
        x = random.normal(size=(4, 4)).astype("float32")
        yield {"x": x, "label": (x.sum(1) > 0).astype("int32")}


def main() -> None:
    call, kind, count = sys.argv[1:]
    several_processes._PATIENCE = several_processes._APART_PATIENCE = 2.0
    ft.parallel.initialize()
    trainer = ft.Trainer(Net(), ft.OptSpec("sgd", learning_rate=0.1, ema=0.9), verbose=False)
    trainer.fit(batches(3), steps=3)
    found = batches(int(count))
    print(getattr(trainer, call)(list(found) if kind == "list" else found), flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
