"""A process of a run with a Trainer; `python trainer_child.py [name=value ...]`.

Prints `step N` after each step; `raise=N` has a hook raise there, `nan=N` makes that batch bad,
in every process that is given it. `save=FOLDER` saves at the end, and takes `slow=SECONDS`;
`interrupt=N` has a hook raise KeyboardInterrupt.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft

ROWS = 8


class Steps(ft.Hook):
    """Prints the steps, and raises at one of them."""

    def __init__(self, fails_at: int, interrupted_at: int) -> None:
        self._fails_at, self._interrupted_at = fails_at, interrupted_at

    def period(self, run: object) -> int:
        return 1

    def on_step(self, run: object) -> None:
        batches: int = run.batches  # type: ignore[attr-defined]
        print("step", batches, flush=True)
        if batches == self._fails_at:
            raise ValueError("no more disk")
        if batches == self._interrupted_at:
            raise KeyboardInterrupt


def batches(words: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    count, index = jax.process_count(), jax.process_index()
    mine = slice(index * ROWS // count, (index + 1) * ROWS // count)
    for number in range(1, int(words.get("steps", "6")) + 1):
        x = random.normal(size=(ROWS, 4)).astype("float32")
        label = (x.sum(1) > 0).astype("int32")
        if number == int(words.get("nan", "0")):
            x[:] = np.nan
        # An iterable yields the rows of its own process.
        yield {"x": x[mine], "label": label[mine]}


def main() -> None:
    words = dict(word.split("=") for word in sys.argv[1:])
    ft.parallel.initialize()
    hooks: list[ft.Hook] = [Steps(int(words.get("raise", 0)), int(words.get("interrupt", 0)))]
    if "save" in words:
        hooks.append(ft.SaveEvery(directory=words["save"]))
        save = ft.checkpoint.save

        def slow_save(*args: Any, **kwargs: Any) -> None:
            time.sleep(float(words["slow"]))
            save(*args, **kwargs)

        ft.checkpoint.save = slow_save
    trainer = ft.Trainer(
        nn.Dense(2),
        ft.OptSpec("sgd", learning_rate=float(words.get("rate", "0.1"))),
        hooks=hooks,
        log_every=1,
        seed=int(words.get("seed", "0")),
    )
    steps = int(words.get("steps", "6"))
    trainer.fit(batches(words), steps=steps)
    print("result", trainer.state.step, flush=True)


if __name__ == "__main__":
    main()
