"""The command `flaxtrain`.

flaxtrain fit  --config=configs/digits.py --workdir=runs/digits --config.opt.learning_rate=1e-3
flaxtrain plan --config=configs/digits.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from flaxtrain.cli.from_config import fit_arguments, trainer_from_config
from flaxtrain.errors import FlaxtrainError, unknown_name

__all__ = ["fit", "main", "plan"]


def fit(config: ConfigDict, workdir: str | None) -> None:
    """Trains what the config describes and prints the final metrics."""
    trainer, task = trainer_from_config(config, workdir)
    result = trainer.fit(**fit_arguments(config, task))
    final = result.history.val[-1] if result.history.val else result.history.train[-1]
    print("final  " + "  ".join(f"{name} {value:.4g}" for name, value in final.items()))
    if workdir is not None:
        print(f"tensorboard --logdir {workdir}")


def plan(config: ConfigDict, workdir: str | None) -> None:
    """Prints what `fit` would do."""
    trainer, task = trainer_from_config(config, workdir)
    arguments = fit_arguments(config, task)
    print(trainer.plan(arguments["ds"], epochs=arguments["epochs"], steps=arguments["steps"]))


COMMANDS: Mapping[str, Callable[[ConfigDict, str | None], None]] = {"fit": fit, "plan": plan}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script.

    Args:
        argv: command line, the program's name first; default `sys.argv`.
    """
    words = list(sys.argv if argv is None else argv)
    # A config file may import the tasks that stand beside it, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    if len(words) < 2 or words[1] in ("-h", "--help", "help"):
        print(__doc__)
        sys.exit(0 if len(words) > 1 else 2)
    command = words.pop(1)
    if command not in COMMANDS:
        _fail(unknown_name("command", command, COMMANDS, where="flaxtrain"))
    config = config_flags.DEFINE_config_file("config", None, "the run's config, a Python file")
    workdir = flags.DEFINE_string("workdir", None, "the run's directory")
    flags.mark_flag_as_required("config")

    def run(rest: Sequence[str]) -> None:
        try:
            COMMANDS[command](config.value, workdir.value)
        except FlaxtrainError as error:
            _fail(error)

    app.run(run, argv=words)


def _fail(error: FlaxtrainError) -> None:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
