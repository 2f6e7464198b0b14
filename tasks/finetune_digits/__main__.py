"""`python -m tasks.finetune_digits`: four ways to learn the digits 5-9 from few labels.

For each seed a network is pretrained on the digits 0-4. Three ways go on from it, with a new
head: only the head is trained; or the blocks below it thaw one after the other; or everything
is trained at once, lower layers with smaller learning rates. The fourth begins from scratch.
All make the same number of steps on the same labelled digits. Each has its own learning rate,
the best of one grid for all, which was found with a seed and with digits that the table does
not use.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import flaxtrain as ft
from configs.finetune_digits import get_config

SEEDS = (0, 1, 2)
TUNING_SEED = 3
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NAMES: Mapping[str, str] = {
    "head": "head only",
    "gradual": "gradual unfreezing",
    "full": "all, layer decay 0.7",
    "scratch": "from scratch",
}


def pretrain(config: ft.Config, workdir: Path) -> Path:
    """Trains on the digits 0-4, unless that was done; returns where the weights are."""
    trainer, task = ft.trainer_from_config(config, workdir, verbose=False)
    trainer.fit(**ft.fit_arguments(config, task))
    return workdir


def fine_tune(
    config: ft.Config, pretrained: Path | None, workdir: Path | None = None
) -> tuple[ft.Trainer, dict[str, float]]:
    """Trains on a few digits 5-9; returns the trainer and what the held-out ones give.

    Args:
        config: what `get_config` of one of the ways returned.
        pretrained: where the weights of the backbone come from; None: they are new.
        workdir: the run's directory.
    """
    start = None if pretrained is None else ft.Restore(pretrained, skip=["head"])
    trainer, task = ft.trainer_from_config(config, workdir, init_from=start, verbose=False)
    arguments = ft.fit_arguments(config, task)
    trainer.fit(**arguments)
    return trainer, trainer.evaluate(arguments["eval_ds"])


def tuned(way: str, rates: Sequence[float], pretrained: Path) -> float:
    """Returns the learning rate with the best accuracy on the tuning digits.

    Where accuracies are equal, the loss decides.
    """
    config: ft.Config = get_config(way)
    config.seed, config.data.tune = TUNING_SEED, True
    found = {}
    for rate in rates:
        config.opt.learning_rate = rate
        _, metrics = fine_tune(config, source(way, pretrained))
        found[rate] = (metrics["accuracy"], -metrics["loss"])
    shown = "  ".join(f"{rate:g}: {accuracy:.3f}" for rate, (accuracy, _) in found.items())
    print(f"tuning  {NAMES[way]:<21} {shown}", flush=True)
    return max(found, key=lambda rate: found[rate])


def source(way: str, pretrained: Path) -> Path | None:
    """Returns what a way starts from."""
    return None if way == "scratch" else pretrained


def row(way: str, rate: float, values: Sequence[float]) -> str:
    """Returns a line with mean, spread and the single values."""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    single = ", ".join(f"{value:.4f}" for value in values)
    return f"{NAMES[way]:<21} {rate:<14g} {mean:.4f} +- {spread:.4f}   ({single})"


def compare(directory: Path, rates: Sequence[float], seeds: Sequence[int]) -> None:
    """Tunes, trains and prints the table."""
    pretrained = {}
    for seed in (TUNING_SEED, *seeds):
        config: ft.Config = get_config("pretrain")
        config.seed = seed
        pretrained[seed] = pretrain(config, directory / "pretrain" / f"seed{seed}")
    best = {way: tuned(way, rates, pretrained[TUNING_SEED]) for way in NAMES}
    rows = []
    for way, rate in best.items():
        config = get_config(way)
        config.opt.learning_rate, values = rate, []
        for seed in seeds:
            config.seed, workdir = seed, directory / way / f"seed{seed}"
            _, metrics = fine_tune(config, source(way, pretrained[seed]), workdir)
            values.append(metrics["accuracy"])
        rows.append(row(way, rate, values))
    shared: ft.Config = get_config()
    length = f"{shared.steps} steps, {shared.data.per_class} labels a class"
    print()
    print(f"accuracy on the held-out digits 5-9 after {length}")
    print(f"{'':<21} learning rate  mean +- standard deviation of {len(seeds)} seeds")
    print("\n".join(rows))
    print(
        f"learning rates: the best of {len(rates)} for each way, tuned with seed {TUNING_SEED}"
    )


def main() -> None:
    """Compares, and prints how to look at the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/finetune_digits"))
    directory: Path = parser.parse_args().workdir
    with tempfile.TemporaryDirectory() as cache:
        # Learning rate and seed are data: runs that differ in them share compiled steps.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compare(directory, RATES, SEEDS)
    print(f"\nlook at the curves:  tensorboard --logdir {directory}")


if __name__ == "__main__":
    main()
