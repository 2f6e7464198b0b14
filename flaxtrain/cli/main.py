"""The command `flaxtrain`.

flaxtrain fit  --config=configs/digits.py --workdir=runs/digits --config.opt.learning_rate=1e-3
flaxtrain plan --config=configs/digits.py --form=rules

Several processes make one run when each starts with the same arguments and its own number:

flaxtrain fit  --config=... --coordinator=10.0.0.1:8476 --processes=2 --process=0
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from flaxtrain.cli.from_config import fit_arguments, trainer_from_config
from flaxtrain.errors import ArgumentError, FlaxtrainError, UnknownNameError, unknown_name
from flaxtrain.loop import Plan
from flaxtrain.parallel import initialize, is_writer

__all__ = ["fit", "main", "plan"]


def fit(
    config: ConfigDict,
    workdir: str | None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Trains what the config describes and prints the final metrics.

    Args:
        config: the run's config.
        workdir: the run's directory.
        coordinator: as for `ft.parallel.initialize`.
        processes: likewise.
        process: likewise.
    """
    initialize(coordinator, processes, process)
    trainer, task = trainer_from_config(config, workdir)
    result = trainer.fit(**fit_arguments(config, task))
    rows = result.history.val or result.history.train
    if not is_writer():
        return
    if rows:
        print("final  " + "  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    else:
        print(f"the run was finished already, at step {int(result.state.step)}")
    if workdir is not None:
        print(f"tensorboard --logdir {workdir}")


def plan(config: ConfigDict, workdir: str | None, form: str = "text") -> None:
    """Prints what `fit` would do, without training.

    Args:
        config: the run's config.
        workdir: the run's directory; nothing is written there.
        form: `"text"`, `"rules"` (text, with the evidence for the role of each parameter),
            `"markdown"` or `"json"`.
    """
    trainer, task = trainer_from_config(config, workdir)
    arguments = fit_arguments(config, task)
    found = trainer.plan(arguments["ds"], epochs=arguments["epochs"], steps=arguments["steps"])
    print(_FORMS[form](found))


_FORMS: Mapping[str, Callable[[Plan], str]] = {
    "text": Plan.text,
    "rules": lambda found: found.text(rules=True),
    "markdown": Plan.markdown,
    "json": lambda found: json.dumps(found.to_dict(), indent=2),
}

COMMANDS: Mapping[str, Callable[..., None]] = {"fit": fit, "plan": plan}


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
    own = _flags_of(command)

    def run(rest: Sequence[str]) -> None:
        try:
            _check_rest(rest, command)
            chosen = {name: flag.value for name, flag in own.items()}
            COMMANDS[command](config.value, workdir.value, **chosen)
        except FlaxtrainError as error:
            _fail(error)

    app.run(run, argv=words, flags_parser=_parse)


def _flags_of(command: str) -> dict[str, flags.FlagHolder[Any]]:
    """Defines the flags that only one command has."""
    if command == "plan":
        return {"form": flags.DEFINE_enum("form", "text", list(_FORMS), "how it is written")}
    number = flags.DEFINE_integer
    return {
        "coordinator": flags.DEFINE_string("coordinator", None, "host:port of process 0"),
        "processes": number("processes", None, "how many make the run", lower_bound=1),
        "process": number("process", None, "the number of this one, from 0", lower_bound=0),
    }


def _parse(words: list[str]) -> list[str]:
    """Reads the flags. What ml_collections answers with a traceback is said in our own form."""
    try:
        _check_config_file(words)
        return app.parse_flags_with_usage(words)
    except FlaxtrainError as error:
        _fail(error)
    except (AttributeError, KeyError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename.endswith("config_path.py") for frame in frames):
            raise  # an error inside the config file, which its author has to see
        _fail(_unknown_field(str(error), words))


def _check_config_file(words: Sequence[str]) -> None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        path = Path((value if equals else following).split(":")[0])
        if name in ("--config", "-config") and not path.is_file():
            raise ArgumentError(
                f"there is no config file {str(path)!r}",
                where="--config",
                fix="give the path of a Python file that defines get_config()",
            )


def _unknown_field(message: str, words: Sequence[str]) -> UnknownNameError:
    flags_given = [word.partition("=")[0] for word in words if word.startswith("--config.")]
    named = re.findall(r"\w+", message)
    wrong = [(flag, name) for flag in flags_given for name in flag.split(".") if name in named]
    guess = re.search(r'Did you mean "([^"]+)"', message)
    hint = f"did you mean {guess[1]!r}? " if guess else ""
    return UnknownNameError(
        f"the config has no field {wrong[0][1]!r}" if wrong else message,
        where=wrong[0][0] if wrong else ", ".join(flags_given),
        fix=f"{hint}An override changes a field that the config file has",
    )


def _check_rest(rest: Sequence[str], command: str) -> None:
    if len(rest) > 1:
        raise ArgumentError(
            f"{rest[1]!r} is not expected",
            where=f"flaxtrain {command}",
            fix="write options with two dashes: --config=configs/digits.py",
        )


def _fail(error: FlaxtrainError) -> NoReturn:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
