"""`python -m tasks.digits`: the default run, over three seeds, and on writers never seen.

Each seed varies the initial values, the dropout and the order of the examples. The split is
fixed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

import flaxtrain as ft
from configs.digits import get_config

SEEDS = (0, 1, 2)


def accuracy(split: str, seed: int, workdir: Path | None) -> float:
    """Trains once and returns the accuracy after the last step, on the validation part."""
    config: ft.Config = get_config()
    config.data.split, config.seed = split, seed
    trainer, task = ft.trainer_from_config(config, workdir)
    trainer.fit(**ft.fit_arguments(config, task))
    return trainer.evaluate(task.val)["accuracy"]


def summary(name: str, values: list[float]) -> str:
    """Returns a line with mean, spread and the single values."""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    single = ", ".join(f"{value:.4f}" for value in values)
    return f"{name:<42} {mean:.4f} +- {spread:.4f}   ({single})"


def main() -> None:
    """Trains, and prints the accuracies and how to look at the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    directory: Path = parser.parse_args().workdir
    found = {
        split: [accuracy(split, seed, directory / split / f"seed{seed}") for seed in SEEDS]
        for split in ("random", "writers")
    }
    print()
    print(f"validation accuracy, mean +- standard deviation of {len(SEEDS)} seeds")
    print(summary("  fixed random split (20%)", found["random"]))
    print(summary("  last 20% of the file, other writers", found["writers"]))
    print()
    tensorboard = os.path.relpath(Path(sys.executable).parent / "tensorboard")
    print(f"look at the curves:  {tensorboard} --logdir {directory}")


if __name__ == "__main__":
    main()
