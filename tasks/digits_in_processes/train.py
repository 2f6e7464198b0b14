"""`python -m tasks.digits_in_processes.train`: what every process of the run runs.

On several machines this is the program to start, once on each, with
`FLAXTRAIN_COORDINATOR=host:port`, `FLAXTRAIN_PROCESSES=n` and `FLAXTRAIN_PROCESS=0` to `n - 1`.
Alone it uses all devices of its machine.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import jax

import flaxtrain as ft
from tasks.digits import CNN

__all__ = ["digest", "train"]


def train(epochs: int, workdir: Path | None) -> ft.Trainer:
    """Trains the model of `tasks.digits` on all devices of all processes."""
    data, val = ft.data.digits()
    schedule = ft.schedules.warmup_cosine_decay_schedule(0.0, 3e-3, "5%", "100%")
    trainer = ft.Trainer(
        CNN(),
        ft.OptSpec("adamw", learning_rate=schedule, weight_decay=0.05),
        mesh={"data": -1},
        workdir=workdir,
    )
    # All processes have all data; each one reads its part of every batch.
    batches = ft.data.batches(data, batch_size=64, shuffle=True)
    trainer.fit(batches, epochs=epochs, eval_ds=val)
    print(f"accuracy {trainer.evaluate(val)['accuracy']:.4f}", flush=True)
    return trainer


def digest(trainer: ft.Trainer) -> str:
    """Returns a fingerprint of the parameters, bit for bit."""
    assert trainer.state is not None, "it has trained"
    params = ft.parallel.gathered(trainer.state.params)
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        found.update(jax.tree_util.keystr(path).encode() + leaf.tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    """Joins the other processes, trains, and prints the fingerprint."""
    print(ft.parallel.initialize(), flush=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workdir", type=Path, default=None)
    arguments = parser.parse_args()
    trainer = train(arguments.epochs, arguments.workdir)
    print("parameters", digest(trainer), flush=True)


if __name__ == "__main__":
    main()
