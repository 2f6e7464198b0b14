"""A process of a run on sharded parameters; `python data_child.py WORKDIR arrays|parts`.

Trains, evaluates and predicts, and prints one line of what came of it. With `arrays` every
process has the whole data set, with `parts` a generator of its own rows; the last batch is a
smaller one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft

ROWS, EXAMPLES = 8, 36


def data() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype("float32")
    return {"x": x, "label": (x.sum(1) > 0).astype("int32")}


def parts() -> Iterator[dict[str, np.ndarray]]:
    count, index = jax.process_count(), jax.process_index()
    for start in range(0, EXAMPLES, ROWS):
        rows = min(ROWS, EXAMPLES - start) // count
        mine = slice(start + index * rows, start + (index + 1) * rows)
        yield {name: leaf[mine] for name, leaf in data().items()}


def digest(tree: Any) -> str:
    leaves = jax.tree.leaves(ft.parallel.gathered(tree))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def main() -> None:
    workdir, kind = sys.argv[1:]
    ft.parallel.initialize()
    trainer = ft.Trainer(
        nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]),
        ft.OptSpec("adam", learning_rate=0.01, ema=0.9),
        mesh={"fsdp": -1},
        sharding=ft.Sharding("fsdp", min_size=8),
        workdir=None if workdir == "none" else workdir,
        verbose=False,
    )
    given: Any = ft.data.batches(data(), ROWS, shuffle=False) if kind == "arrays" else parts
    trainer.fit(given, steps=10)
    metrics = trainer.evaluate(given, weights="both")
    outputs = trainer.predict(given)
    numbers = {name: float(value).hex() for name, value in sorted(metrics.items())}
    assert trainer.state is not None
    kernel = trainer.state.params["layers_0"]["kernel"]
    print("steps", int(trainer.state.step), "split", not kernel.is_fully_replicated)
    print("found", digest(trainer.state.params), digest(outputs), outputs.shape, numbers)


if __name__ == "__main__":
    main()
