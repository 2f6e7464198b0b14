"""Tasks by name."""

from __future__ import annotations

import flax.linen as nn
import numpy as np
import pytest
from ml_collections import ConfigDict

import flaxtrain as ft
from flaxtrain import errors
from flaxtrain.cli.tasks import find_task


@ft.register_task("line of the tests")
def line(config: ConfigDict) -> ft.Task:
    x = np.linspace(-1, 1, config.data.examples, dtype=np.float32)[:, None]
    return ft.Task(model=nn.Dense(1), train={"x": x, "target": 3 * x + 1})


def test_a_registered_task_is_found_and_trained() -> None:
    assert find_task("line of the tests") is line
    config = ConfigDict(
        {
            "task": "line of the tests",
            "data": {"examples": 64},
            "opt": {"optimizer": "sgd", "learning_rate": 0.5},
            "batch_size": 64,
            "steps": 200,
        }
    )
    trainer, task = ft.trainer_from_config(config, verbose=False)
    trainer.fit(**ft.fit_arguments(config, task))
    params = trainer.state.params  # type: ignore[union-attr]
    # Each step shrinks the error of the slope by 0.66, and that of the offset to 0: the rest
    # is float32.
    assert float(params["kernel"][0, 0]) == pytest.approx(3.0, abs=1e-5)
    assert float(params["bias"][0]) == pytest.approx(1.0, abs=1e-5)


def test_a_misspelt_task_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(errors.UnknownNameError) as caught:
        find_task("line of the test")
    assert caught.value.found == "unknown task 'line of the test'"
    assert caught.value.where == "config.task"
    assert "did you mean 'line of the tests'?" in str(caught.value.fix)
    assert "import the module that registers it" in str(caught.value.fix)


def test_a_name_is_registered_once_except_by_the_same_function() -> None:
    ft.register_task("line of the tests")(line)  # the module was imported a second time
    with pytest.raises(errors.ArgumentError, match="registered already"):

        @ft.register_task("line of the tests")
        def another(config: ConfigDict) -> ft.Task:
            raise AssertionError

    assert find_task("line of the tests") is line
