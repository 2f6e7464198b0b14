"""The command line, in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

import flaxtrain as ft
from configs.digits import get_config
from flaxtrain.cli import main as module
from tests.processes.running import free_port

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m flaxtrain`; the repository is not installed in the tests."""
    result = subprocess.run(
        [sys.executable, "-m", "flaxtrain", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == check, (result.stdout[-2000:], result.stderr[-2000:])
    return result


def test_fit_trains_the_config_with_its_overrides(tmp_path: Path) -> None:
    found = run(
        "fit",
        "--config=configs/digits.py",
        "--config.epochs=1",
        "--config.eval_every=1ep",
        "--config.opt.learning_rate=1e-3",
        f"--workdir={tmp_path}",
    )
    final = re.search(r"^final  step 23  loss (\S+)  accuracy (\S+)$", found.stdout, re.M)
    assert final is not None, found.stdout
    assert float(final[2]) > 0.3  # chance is 0.1
    assert f"tensorboard --logdir {tmp_path}" in found.stdout
    saved = ft.checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and saved.name == "23"
    spec = ft.checkpoint.read_meta(saved)["spec"]
    assert spec["learning_rate"]["peak_value"] == 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "train", "val"]

    again = run(
        "fit",
        "--config=configs/digits.py",
        "--config.epochs=1",
        "--config.opt.learning_rate=1e-3",
        f"--workdir={tmp_path}",
    )
    assert "the run was finished already, at step 23" in again.stdout


def test_plan_prints_the_table_and_trains_nothing(tmp_path: Path) -> None:
    found = run(
        "plan", "--config=configs/digits.py", "--config.batch_size=128", f"--workdir={tmp_path}"
    )
    for piece in (
        "Conv_0/kernel",
        "norm_scale",
        "image float32[128, 8, 8, 1]",
        '"adamw"',
        "learning rate at 0, 179, 359",
    ):
        assert piece in found.stdout
    assert "class Conv" not in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_is_written_as_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    config = get_config()
    config.steps, config.epochs = 20, None
    module.plan(config, None, "json")
    data = json.loads(capsys.readouterr().out)
    assert data["horizon"]["batches"] == 20
    assert data["table"]["rows"][0]["path"] == "Conv_0/kernel"


def test_every_form_of_a_plan_is_another_text() -> None:
    trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", 0.1), verbose=False)
    batch = {"x": np.ones((4, 3), "float32"), "label": np.zeros(4, "int32")}
    found = trainer.plan(batch, steps=1, batch_size=4)
    written = {name: form(found) for name, form in module._FORMS.items()}
    assert written["text"] == str(found)
    assert written["rules"] == found.text(rules=True)
    assert written["markdown"] == found.markdown()
    assert len(set(written.values())) == 4


def test_a_form_that_is_not_there_is_refused_with_those_that_are() -> None:
    found = run("plan", "--config=configs/digits.py", "--form=yaml", check=1)
    assert "<text|rules|markdown|json>" in found.stderr


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "--config.opt.learning_rat=1",
            """UnknownNameError: the config has no field 'learning_rat'
  where: --config.opt.learning_rat
  fix:   did you mean 'learning_rate'? An override changes a field that the config file has
""",
        ),
        (
            "--config.data.split=rand",
            """UnknownNameError: unknown split 'rand'
  where: digits
  fix:   did you mean 'random'? Known: random, writers
""",
        ),
    ],
)
def test_a_mistake_is_told_without_a_traceback(override: str, text: str) -> None:
    found = run("plan", "--config=configs/digits.py", override, check=1)
    assert found.stderr.endswith(text)
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_a_command_that_is_not_there_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        module.main(["flaxtrain", "fitt"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "UnknownNameError: unknown command 'fitt'\n"
        "  where: flaxtrain\n"
        "  fix:   did you mean 'fit'? Known: fit, plan\n"
    )


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0)])
def test_help_shows_both_commands(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        module.main(["flaxtrain", *words])
    assert caught.value.code == code
    text = capsys.readouterr().out
    assert "flaxtrain fit " in text and "flaxtrain plan" in text


@pytest.mark.parametrize("words", [["--config=no.py"], ["--config", "no.py"]])
def test_a_config_file_that_is_not_there_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        module._parse(["flaxtrain", *words])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(
        "ArgumentError: there is no config file 'no.py'\n  where: --config\n"
    )


def test_a_word_too_many_is_refused() -> None:
    with pytest.raises(ft.errors.ArgumentError, match="'epochs=3' is not expected"):
        module._check_rest(["flaxtrain", "epochs=3"], "fit")


def test_the_console_script_is_this_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    name, _, attribute = scripts["flaxtrain"].partition(":")
    assert getattr(importlib.import_module(name), attribute) is module.main


@pytest.mark.slow
def test_two_processes_make_one_run_and_one_of_them_writes(tmp_path: Path) -> None:
    words = [
        *(sys.executable, "-m", "flaxtrain", "fit", "--config=configs/digits.py"),
        *("--config.epochs=1", "--config.eval_every=1ep", f"--workdir={tmp_path}"),
        *(f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"),
    ]
    started = [
        subprocess.Popen(
            [*words, f"--process={index}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], texts
    assert ["final  step 23" in text for text in texts] == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "train", "val"]
