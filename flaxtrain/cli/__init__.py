"""The command line: configs, tasks by name, and the command `flaxtrain`."""

from flaxtrain.cli.from_config import fit_arguments, spec_from_config, trainer_from_config
from flaxtrain.cli.tasks import Config, Task, register_task

__all__ = [
    "Config",
    "Task",
    "fit_arguments",
    "register_task",
    "spec_from_config",
    "trainer_from_config",
]
