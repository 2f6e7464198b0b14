"""From a config to a trainer. A config holds plain data; names in it are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxtrain.cli.tasks import Config, Task, find_task
from flaxtrain.data import Stream, as_stream
from flaxtrain.errors import ArgumentTypeError, unknown_name
from flaxtrain.loop import Trainer
from flaxtrain.schedules import from_dict
from flaxtrain.spec import OptSpec

__all__ = ["fit_arguments", "spec_from_config", "trainer_from_config"]

FIELDS: Mapping[str, str] = {
    "task": "registered name of the task",
    "opt": "arguments of OptSpec; learning_rate is the peak where there is a schedule",
    "schedule": "a schedule by name, its arguments beside it; its peak is opt.learning_rate",
    "batch_size": "examples per step",
    "epochs": "passes over the training data (or steps)",
    "steps": "number of steps (or epochs)",
    "eval_every": "how often to evaluate: steps, '1ep', '10%'",
    "log_every": "steps between two log points",
    "seed": "root of all randomness",
    "model": "whatever the task's model takes",
    "data": "whatever the task's data take",
}
"""What a config may hold."""

_PEAK = ("peak_value", "init_value", "value")


def spec_from_config(config: Config) -> OptSpec:
    """Returns the optimizer spec of a config.

    `config.opt` holds the arguments of `OptSpec`. With a `config.schedule`, `opt.learning_rate`
    is its peak, so that `--config.opt.learning_rate=...` works with and without one.

    Raises:
        UnknownNameError: a name is not known.

    Example:
        >>> spec_from_config(ConfigDict({"opt": {"optimizer": "sgd", "learning_rate": 0.1}}))
        OptSpec('sgd', learning_rate=0.1)
    """
    arguments: dict[str, Any] = dict(config.opt.to_dict())
    schedule = config.get("schedule")
    if schedule:
        data = dict(schedule.to_dict())
        accepted = from_dict_arguments(data["schedule"])
        peak = next(name for name in _PEAK if name in accepted)
        data.setdefault(peak, arguments["learning_rate"])
        arguments["learning_rate"] = from_dict(data)
    return OptSpec(**arguments)


def from_dict_arguments(name: str) -> tuple[str, ...]:
    """Returns the names of the arguments of a schedule."""
    import inspect

    from flaxtrain import schedules

    factory = getattr(schedules, name, None)
    if factory is None:
        raise unknown_name("schedule", name, schedules.__all__, where="config.schedule")
    return tuple(inspect.signature(factory).parameters)


def trainer_from_config(
    config: Config, workdir: str | Path | None = None, **kwargs: Any
) -> tuple[Trainer, Task]:
    """Returns the trainer and the task that a config describes.

    Args:
        config: see `configs/digits.py` for one.
        workdir: the run's directory.
        **kwargs: further arguments of `Trainer`.

    Raises:
        UnknownNameError: the task, the optimizer or a field of the config is not known.
    """
    if not isinstance(config, ConfigDict):
        raise ArgumentTypeError(
            f"the config is a {type(config).__name__}",
            where="get_config()",
            fix="return an ml_collections.ConfigDict",
        )
    fields: dict[str, Any] = {name: config[name] for name in config}
    for name in fields:
        if name not in FIELDS:
            raise unknown_name("config field", name, FIELDS, where=f"config.{name}")
    task = find_task(fields["task"])(config)
    trainer = Trainer(
        task.model,
        spec_from_config(config),
        loss=task.loss,
        metrics=task.metrics,
        seed=fields.get("seed", 0),
        log_every=fields.get("log_every", 50),
        workdir=workdir,
        **kwargs,
    )
    return trainer, task


def fit_arguments(config: Config, task: Task, seed: int = 0) -> dict[str, Any]:
    """Returns the arguments of `Trainer.fit` that a config describes, `ds` among them."""
    size = config.get("batch_size")
    return {
        "ds": _stream(task.train, size, shuffle=True, seed=config.get("seed", seed)),
        "eval_ds": None
        if task.val is None
        else _stream(task.val, size, shuffle=False, seed=seed),
        "epochs": config.get("epochs"),
        "steps": config.get("steps"),
        "eval_every": config.get("eval_every", "1ep"),
    }


def _stream(ds: Any, batch_size: int | None, *, shuffle: bool, seed: int) -> Stream:
    size = batch_size if isinstance(ds, (dict, tuple)) else None
    return as_stream(ds, batch_size=size, shuffle=shuffle, seed=seed)
