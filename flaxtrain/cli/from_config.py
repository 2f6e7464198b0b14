"""From a config to a trainer. A config holds plain data; names in it are looked up."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxtrain.cli.tasks import Config, Task, find_task
from flaxtrain.data import Stream, as_stream, is_arrays
from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.loop import Trainer
from flaxtrain.params import LoRA, Restore
from flaxtrain.precision import DynamicScale, FixedScale, LossScale, NoScale
from flaxtrain.schedules import FACTORIES, from_dict
from flaxtrain.spec import Freeze, Group, OptSpec
from flaxtrain.spec.data import decoded
from flaxtrain.text import kind_of

__all__ = ["fit_arguments", "spec_from_config", "trainer_from_config"]

FIELDS: Mapping[str, str] = {
    "task": "registered name of the task",
    "opt": "arguments of OptSpec; learning_rate is the peak where there is a schedule",
    "schedule": "a schedule by name, its arguments beside it; its peak is opt.learning_rate",
    "init_from": "arguments of Restore; without a source, the run starts from new weights",
    "adapters": "arguments of LoRA",
    "precision": "what is stored and computed in: 'f32', 'bf16', 'p=bf16,c=bf16,o=f32'",
    "loss_scale": "of float16: a number, or {'kind': 'DynamicScale'} with its arguments",
    "mesh": "axes of the mesh of devices, such as {'data': -1}; without one, one device",
    "sharding": "what is split over them: 'replicated', 'zero1', 'fsdp'",
    "backend": "'jit', or 'pmap'",
    "steps_per_call": "steps in one compiled call: a number, or 'auto'",
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

_FORMS = {
    "opt": "{'optimizer': 'adamw', 'learning_rate': 1e-3}",
    "schedule": "{'schedule': 'cosine_decay_schedule', 'decay_steps': '100%'}",
    "init_from": "{'source': 'runs/pretrained', 'skip': ('head',)}",
    "adapters": "{'select': '#kernel', 'rank': 4}",
    "loss_scale": "{'kind': 'DynamicScale', 'init': 1024.0}",
}
_SCALES: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (NoScale, FixedScale, DynamicScale)
}
_PEAK = ("peak_value", "init_value", "value")


def spec_from_config(config: Config) -> OptSpec:
    """Returns the optimizer spec of a config.

    `config.opt` holds the arguments of `OptSpec`; groups and freezes may be dicts, and so may
    averages, clips and the like: `{"kind": "ClipValue", "limit": 1.0}`. With a
    `config.schedule`, `opt.learning_rate` is its peak, so that
    `--config.opt.learning_rate=...` works with and without one.

    Raises:
        UnknownNameError: a name is not known.
        ArgumentError: something is missing, or out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> spec_from_config(ConfigDict({"opt": {"optimizer": "sgd", "learning_rate": 0.1}}))
        OptSpec('sgd', learning_rate=0.1)
    """
    arguments = {name: decoded(value) for name, value in _section(config, "opt").items()}
    if "optimizer" not in arguments:
        raise _missing("config.opt", "optimizer", "name one: 'adamw'")
    if config.get("schedule"):
        data = _section(config, "schedule")
        peak = _peak_of(data)
        if peak is not None and peak not in data:
            if "learning_rate" not in arguments:
                raise _missing("config.opt", "learning_rate", "give the schedule's peak: 1e-3")
            data[peak] = arguments["learning_rate"]
        arguments["learning_rate"] = from_dict(data)
    for name, kind in (("groups", Group), ("freeze", Freeze)):
        if isinstance(arguments.get(name), (list, tuple)):
            arguments[name] = [_declared(kind, row) for row in arguments[name]]
    return OptSpec(**arguments)


def _declared(kind: Any, row: Any) -> Any:
    """Returns a group or a freeze that is written as a dict of its arguments."""
    return kind(**row) if isinstance(row, (Mapping, ConfigDict)) else row


def _peak_of(data: Mapping[str, Any]) -> str | None:
    """Returns the argument of a schedule that `opt.learning_rate` stands for."""
    name = data.get("schedule")
    if name is None:
        raise _missing("config.schedule", "schedule", "name one: 'cosine_decay_schedule'")
    if name not in FACTORIES:
        raise unknown_name("schedule", str(name), FACTORIES, where="config.schedule")
    accepted = inspect.signature(FACTORIES[name]).parameters
    return next((peak for peak in _PEAK if peak in accepted), None)


def _section(config: Config, name: str) -> dict[str, Any]:
    """Returns a part of the config as a plain dict."""
    if name not in config:
        raise _missing("config", name, f"add {name}={_FORMS[name]}")
    part = config[name]
    if not isinstance(part, ConfigDict):
        raise ArgumentTypeError(
            f"config.{name} is {kind_of(part)}, not a dict of arguments",
            where=f"config.{name}",
            fix=f"write {name}={_FORMS[name]}",
        )
    return dict(part.to_dict())


def _missing(where: str, name: str, fix: str) -> ArgumentError:
    return ArgumentError(f"{name} is missing", where=where, fix=fix)


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
        ArgumentError: something is missing, or out of range.
        ArgumentTypeError: a value has the wrong type.
    """
    if not isinstance(config, ConfigDict):
        raise ArgumentTypeError(
            f"the config is {kind_of(config)}",
            where="get_config()",
            fix="return an ml_collections.ConfigDict",
        )
    fields: dict[str, Any] = {name: config[name] for name in config}
    for name in fields:
        if name not in FIELDS:
            raise unknown_name("config field", name, FIELDS, where=f"config.{name}")
    if "task" not in fields:
        raise _missing("config", "task", "name a registered task: task='digits'")
    task = find_task(fields["task"])(config)
    trainer = Trainer(
        task.model,
        spec_from_config(config),
        loss=task.loss,
        metrics=task.metrics,
        precision=fields.get("precision", "f32"),
        seed=fields.get("seed", 0),
        log_every=fields.get("log_every", 50),
        workdir=workdir,
        **{**_pretrained(config), **_scaled(config), **_on_devices(config), **kwargs},
    )
    return trainer, task


def _pretrained(config: Config) -> dict[str, Any]:
    """Returns where the weights come from, and the adapters, as arguments of `Trainer`."""
    found: dict[str, Any] = {}
    if config.get("init_from") and config.init_from.get("source") is not None:
        found["init_from"] = _made(Restore, _section(config, "init_from"), "init_from")
    if config.get("adapters"):
        found["adapters"] = _made(LoRA, _section(config, "adapters"), "adapters")
    return found


def _on_devices(config: Config) -> dict[str, Any]:
    """Returns what a config says of devices as arguments of `Trainer`."""
    names = ("mesh", "sharding", "backend", "steps_per_call")
    found = {name: config[name] for name in names if config.get(name) is not None}
    return {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in found.items()}


def _scaled(config: Config) -> dict[str, LossScale]:
    """Returns the loss scale as an argument of `Trainer`; without one, it has its default."""
    given, where = config.get("loss_scale"), "config.loss_scale"
    if given is None:
        return {}
    if not isinstance(given, ConfigDict):
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise ArgumentTypeError(
                f"{where} is {kind_of(given)}, neither a number nor a dict",
                where=where,
                fix=f"write loss_scale=1024.0, or loss_scale={_FORMS['loss_scale']}",
            )
        return {"loss_scale": FixedScale(given)}
    arguments = _section(config, "loss_scale")
    if "kind" not in arguments:
        raise _missing(where, "kind", f"write loss_scale={_FORMS['loss_scale']}")
    kind = arguments.pop("kind")
    if kind not in _SCALES:
        raise unknown_name("kind", str(kind), _SCALES, where=where)
    # What changes during a run is no part of a config.
    known = [f.name for f in dataclasses.fields(_SCALES[kind]) if f.metadata.get("static")]
    for argument in arguments:
        if argument not in known:
            raise unknown_name("argument", argument, known, where=f"{where}: {kind}")
    if kind == FixedScale.__name__ and "value" not in arguments:
        raise _missing(where, "value", "write loss_scale=1024.0")
    return {"loss_scale": _SCALES[kind](**arguments)}


def _made(kind: Any, arguments: dict[str, Any], name: str) -> Any:
    known = tuple(inspect.signature(kind).parameters)
    for argument in arguments:
        if argument not in known:
            raise unknown_name("argument", argument, known, where=f"config.{name}")
    if known[0] not in arguments:
        raise _missing(f"config.{name}", known[0], f"write {name}={_FORMS[name]}")
    return kind(**arguments)


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
        "eval_every": config.get("eval_every", None if task.val is None else "1ep"),
    }


def _stream(ds: Any, batch_size: int | None, *, shuffle: bool, seed: int) -> Stream:
    size = batch_size if is_arrays(ds) else None
    return as_stream(ds, batch_size=size, shuffle=shuffle, seed=seed)
