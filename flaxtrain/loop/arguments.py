"""The arguments of the trainer, judged where they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn

from flaxtrain.checks import check_integer
from flaxtrain.errors import ArgumentTypeError
from flaxtrain.metrics.clu_adapter import metric_classes
from flaxtrain.params import LoRA, Restore
from flaxtrain.spec import OptSpec
from flaxtrain.train import check_loss

__all__ = ["as_directory", "check_arguments"]


def check_arguments(
    model: Any,
    opt_spec: Any,
    loss: Any,
    metrics: Any,
    seed: Any,
    log_every: Any,
    init_from: Any,
    adapters: Any,
) -> None:
    """Refuses arguments of the wrong type or out of range, so that `fit` need not.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: an argument is out of range.
        UnknownNameError: there is no loss of that name.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"{model!r} is not a Linen module",
            where="Trainer(model)",
            fix="pass an instance of flax.linen.Module, such as nn.Dense(10)",
        )
    if not isinstance(opt_spec, OptSpec):
        raise ArgumentTypeError(
            f"{opt_spec!r} is a {type(opt_spec).__name__}, not an OptSpec",
            where="Trainer(opt_spec)",
            fix="wrap it: OptSpec('adamw', learning_rate=1e-3) or OptSpec(transformation)",
        )
    check_loss(loss)
    if metrics is not None:
        metric_classes(metrics)
    check_integer("seed", seed, minimum=0, where="Trainer")
    check_integer("log_every", log_every, minimum=1, where="Trainer")
    for name, value, kind in (("init_from", init_from, Restore), ("adapters", adapters, LoRA)):
        if value is not None and not isinstance(value, kind):
            raise ArgumentTypeError(
                f"{name}={value!r} is a {type(value).__name__}, not a {kind.__name__}",
                where="Trainer",
                fix=f"pass ft.{kind.__name__}(...)",
            )


def as_directory(workdir: str | Path | None) -> Path | None:
    """Returns the workdir as a path.

    Raises:
        ArgumentTypeError: it is none.
    """
    if workdir is None:
        return None
    if workdir == "" or not isinstance(workdir, (str, Path)):
        raise ArgumentTypeError(
            f"workdir={workdir!r} is a {type(workdir).__name__}, not a path",
            where="Trainer",
            fix="pass a string or a pathlib.Path",
        )
    return Path(workdir)
