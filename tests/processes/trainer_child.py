"""A process of a run with a Trainer; `python trainer_child.py [name=value ...]`.

Prints `step N` after each step, and where and why the run has ended. In every process that is
given it:

- `raise=N`, `interrupt=N`, `stop=N`: a hook raises, interrupts or stops at that batch;
- `nan=N` makes that batch bad; `look=SECONDS` is how long it is looked at;
- `save=FOLDER` saves at the end, and takes `slow=SECONDS`; `fsdp=1` splits the parameters;
- `steps=N`, 0 for one epoch of `data=N` batches;
- `per_call=K` makes K steps in a call; `pause=SECONDS` sleeps at each;
- `evaluate=fails`: after the run, an evaluation whose data fail, an error that is caught;
- `workdir=FOLDER`; `debug=MODE` makes a debugging run first. The folder is printed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import flaxtrain as ft
from flaxtrain.loop import bad_steps

ROWS = 8


class Steps(ft.Hook):
    """Prints the steps, and does at one of them what it was told."""

    def __init__(self, words: dict[str, str]) -> None:
        self._words = words

    def elsewhere(self, directory: Path) -> Steps:
        directory.mkdir()
        return self

    def on_start(self, run: Any) -> None:
        if run.workdir is not None:
            print("folder", run.workdir.name, flush=True)

    def _is(self, word: str, batches: int) -> bool:
        return batches == int(self._words.get(word, 0))

    def on_step(self, run: object) -> None:
        batches: int = run.batches  # type: ignore[attr-defined]
        print("step", batches, flush=True)
        time.sleep(float(self._words.get("pause", 0)))
        if self._is("raise", batches):
            raise ValueError("no more disk")
        if self._is("interrupt", batches):
            raise KeyboardInterrupt
        if self._is("stop", batches):
            run.stop("enough here")  # type: ignore[attr-defined]


def batches(words: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    count, index = jax.process_count(), jax.process_index()
    mine = slice(index * ROWS // count, (index + 1) * ROWS // count)
    for number in range(1, int(words.get("data", words.get("steps", "6"))) + 1):
        x = random.normal(size=(ROWS, 4)).astype("float32")
        label = (x.sum(1) > 0).astype("int32")
        if number == int(words.get("nan", "0")):
            x[:] = np.nan
        # An iterable yields the rows of its own process.
        yield {"x": x[mine], "label": label[mine]}


def failing() -> Iterator[dict[str, np.ndarray]]:
    yield from batches({"steps": "2"})
    raise OSError("no more rows")


def after(seconds: float, call: Any) -> Any:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return call(*args, **kwargs)

    return slow


def main() -> None:
    words = dict(word.split("=") for word in sys.argv[1:])
    ft.parallel.initialize()
    hooks: list[ft.Hook] = [Steps(words)]
    if "save" in words:
        hooks.append(ft.SaveEvery(directory=words["save"]))
        ft.checkpoint.save = after(float(words.get("slow", 0)), ft.checkpoint.save)
    if "look" in words:
        bad_steps.diagnose_step = after(float(words["look"]), bad_steps.diagnose_step)
    split: dict[str, Any] = (
        {"mesh": {"fsdp": -1}, "sharding": ft.Sharding("fsdp", min_size=8)}
        if "fsdp" in words
        else {}
    )
    trainer = ft.Trainer(
        nn.Dense(2),
        ft.OptSpec("adam", learning_rate=float(words.get("rate", "0.1"))),
        hooks=hooks,
        log_every=int(words.get("per_call", "1")),
        steps_per_call=int(words.get("per_call", "1")),
        seed=int(words.get("seed", "0")),
        workdir=words.get("workdir"),
        **split,
    )
    steps, reason = int(words.get("steps", "6")), "an error"
    length: dict[str, Any] = {"steps": steps} if steps else {"epochs": 1}
    if "debug" in words:
        trainer.fit(list(batches(words)), **length, debug=words["debug"])
    try:
        reason = trainer.fit(batches(words), **length).stopped_because
    finally:
        if trainer.state is not None:
            print("ended", int(trainer.state.counters.batches), "by", reason, flush=True)
    if "evaluate" in words:
        with contextlib.suppress(ft.errors.DataError):
            trainer.evaluate(failing if words["evaluate"] == "fails" else batches(words))
    assert trainer.state is not None
    print("result", trainer.state.step, flush=True)


if __name__ == "__main__":
    main()
