"""A process of runs with several steps per call; `python many_steps_child.py RUN [RUN ...]`.

A run is words such as `name=a,k=4,steps=16,stop=9,workdir=FOLDER`; all of them train the same
model on the same data, one after the other. What a run leaves behind goes to
`$OUTPUT/NAME.npz`, the number of compilations to the screen. With `OWN_DEVICES=2` in the
environment the process has two devices.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "OWN_DEVICES" in os.environ:
    FLAG = f"--xla_force_host_platform_device_count={os.environ['OWN_DEVICES']}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft
from flaxtrain.tree import named_leaves

ROWS, EXAMPLES = 8, 44  # six batches in an epoch, the last one of four rows


class Stop(ft.Hook):
    """Ends the run behind a batch, as something that interrupts it does."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def period(self, run: Any) -> int:
        return self._batch

    def on_step(self, run: Any) -> None:
        if run.batches == self._batch:
            run.stop("as asked for")


class Net(nn.Module):
    """`[rows, 4] -> [rows, 2]`, with BatchNorm, whose statistics are over all devices."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.BatchNorm(not train, momentum=0.8)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x))


def arrays() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype("float32")
    return {"x": x, "label": (x.sum(1) > 0).astype("int32")}


def parts(words: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows; as many batches as `ends=PROCESS:BATCHES` says."""
    count, index = jax.process_count(), jax.process_index()
    short, _, batches = words.get("ends", "-1:0").partition(":")
    for number in range(100):
        if index == int(short) and number == int(batches):
            return
        start = number * ROWS % (EXAMPLES - ROWS) + index * ROWS // count
        yield {name: leaf[start : start + ROWS // count] for name, leaf in arrays().items()}


def run(words: dict[str, str]) -> None:
    k = words["k"]
    hooks: list[ft.Hook] = [Stop(int(words["stop"]))] if "stop" in words else []
    trainer = ft.Trainer(
        Net(),
        ft.OptSpec("sgd", learning_rate=0.1, momentum=0.9, ema=0.9),
        mesh={"data": -1},
        log_every=5,
        steps_per_call=k if k == "auto" else int(k),
        workdir=words.get("workdir"),
        hooks=hooks,
        verbose="workdir" in words,
    )
    whole = ft.data.batches(arrays(), ROWS, shuffle=True, seed=3)
    given: Any = parts(words) if "ends" in words else whole
    evaluated: dict[str, Any] = {"eval_ds": whole, "eval_every": 9}
    result = trainer.fit(given, steps=int(words["steps"]), **evaluated)
    assert trainer.state is not None
    if jax.process_index() == 0:
        state = trainer.state.replace(rng=jax.random.key_data(trainer.state.rng))
        found: dict[str, Any] = {name: np.asarray(x) for name, x in named_leaves(state)}
        rows = [*result.history.train, *result.history.val]
        found["losses"] = np.array([row["loss"] for row in rows])
        np.savez(Path(os.environ["OUTPUT"]) / f"{words['name']}.npz", **found)
    print(words["name"], "compiled", trainer.compilations, flush=True)


def main() -> None:
    ft.parallel.initialize()
    assert jax.device_count() == 2
    for argument in sys.argv[1:]:
        run(dict(word.split("=") for word in argument.split(",")))


if __name__ == "__main__":
    main()
