"""Tasks by registered name: what a config names and a command line trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import flax.linen as nn

from flaxtrain.errors import ArgumentError, UnknownNameError, unknown_name
from flaxtrain.train import LossFn

__all__ = ["Config", "Task", "TaskBuilder", "find_task", "register_task"]


@dataclass(frozen=True)
class Task:
    """A model and the data it is trained on.

    Attributes:
        model: the Linen module.
        train: the training data, as `Trainer.fit` takes it.
        val: the validation data.
        loss: the loss, as `Trainer` takes it.
        metrics: a clu collection, as `Trainer` takes it.
    """

    model: nn.Module
    train: Any
    val: Any = None
    loss: LossFn | str | None = None
    metrics: Any = None


Config: TypeAlias = Any
"""An `ml_collections.ConfigDict`; its fields have no static types."""

TaskBuilder = Callable[[Config], Task]
"""Builds a task from a config."""

_TASKS: dict[str, TaskBuilder] = {}


def register_task(name: str) -> Callable[[TaskBuilder], TaskBuilder]:
    """Registers a function that builds a task, under the name that configs use.

    Args:
        name: the task's name; `config.task` refers to it.

    Raises:
        ArgumentError: (from the decorator) another function has that name already.

    Example:
        >>> @register_task("my_task")
        ... def my_task(config):
        ...     return Task(model=nn.Dense(1), train=(config.x, config.y))
        >>> find_task("my_task") is my_task
        True
    """

    def register(builder: TaskBuilder) -> TaskBuilder:
        before = _TASKS.get(name)
        if before is not None and before.__qualname__ != builder.__qualname__:
            raise ArgumentError(
                f"task {name!r} is registered already",
                where=f"{builder.__module__}.{builder.__qualname__}",
                fix="choose another name",
            )
        _TASKS[name] = builder
        return builder

    return register


def find_task(name: str) -> TaskBuilder:
    """Returns the function registered under `name`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _TASKS:
        error = unknown_name("task", str(name), _TASKS, where="config.task")
        raise UnknownNameError(
            error.found,
            where=error.where,
            fix=f"{error.fix}; import the module that registers it in the config's file",
        )
    return _TASKS[name]
