"""The arguments of the trainer and of `fit`, judged where they are given."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn

from flaxtrain.checks import INT32_MAX, SEED_MAX, check_flag, check_instance, check_integer
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.loop.hooks import check_period
from flaxtrain.loop.length import check_length, check_repeats
from flaxtrain.metrics.clu_adapter import metric_classes
from flaxtrain.params import LoRA, Restore
from flaxtrain.spec import OptSpec
from flaxtrain.text import kind_of
from flaxtrain.train import check_loss

__all__ = ["FitCall", "check_arguments"]


class FitCall(NamedTuple):
    """The arguments of a call of `fit`."""

    ds: Any
    steps: int | None = None
    epochs: int | None = None
    eval_ds: Any = None
    eval_every: int | str | None = None
    batch_size: int | None = None
    cache_frozen: bool = False

    def check(self) -> None:
        """Refuses lengths and periods that are none, before anything is taken from the data.

        Raises:
            ArgumentError: a length or a period is out of range; there are two lengths, or a
                period of evaluations and nothing to evaluate on.
            ArgumentTypeError: one has the wrong type.
            DataError: there are to be several epochs of an iterator.
        """
        check_length(self.steps, self.epochs)
        check_repeats(self.ds, self.epochs)
        if self.eval_every is not None:
            check_period(self.eval_every, where="fit(eval_every=...)")
            if self.eval_ds is None:
                raise ArgumentError(
                    f"eval_every={self.eval_every!r} is given, and no eval_ds",
                    where="fit",
                    fix="pass the data set to evaluate on as eval_ds=, or leave eval_every out",
                )


def check_arguments(
    model: Any,
    opt_spec: Any,
    loss: Any,
    metrics: Any,
    seed: Any,
    log_every: Any,
    verbose: Any,
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
            f"{opt_spec!r} is {kind_of(opt_spec)}, not an OptSpec",
            where="Trainer(opt_spec)",
            fix="wrap it: OptSpec('adamw', learning_rate=1e-3) or OptSpec(transformation)",
        )
    check_loss(loss)
    if metrics is not None:
        metric_classes(metrics)
    check_integer("seed", seed, minimum=0, maximum=SEED_MAX, where="Trainer")
    check_integer("log_every", log_every, minimum=1, maximum=INT32_MAX, where="Trainer")
    check_flag("verbose", verbose, where="Trainer")
    for name, value, kind in (("init_from", init_from, Restore), ("adapters", adapters, LoRA)):
        if value is not None:
            fix = f"pass ft.{kind.__name__}(...)"
            check_instance(name, value, kind, where="Trainer", fix=fix)
